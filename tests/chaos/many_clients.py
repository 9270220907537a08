def run(number, seed, folder):
    raise NotImplementedError
