"""Which ROIs look like those of an adaptation."""

import pytest
import torch

from lib.networks import FastSAM3DConfig, ImageLikeness, image_features

CONFIG = FastSAM3DConfig(
    roi_size=32, patch_size=8, width=48, depth=2, num_heads=2, out_channels=16, detail_channels=4
)
PLAIN = FastSAM3DConfig(roi_size=32, patch_size=8, width=48, depth=2, num_heads=2, out_channels=16)


def site(centre: float, count: int, seed: int) -> torch.Tensor:
    return centre + 0.1 * torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


ARBITRARY = 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(9))
STUDIES = [f"scan{n % 4}" for n in range(12)]


def test_features_are_means_and_spreads_of_whole_and_centre() -> None:
    embedding = torch.zeros(2, CONFIG.embedding_channels, 4, 4, 4)
    detail = torch.zeros(2, 4, 16, 16, 16)
    detail[1, 2, 4:12, 4:12, 4:12] = 8.0
    embedding[:, 16:] = detail.reshape(2, -1, 4, 4, 4)
    features = image_features(embedding, CONFIG)
    assert features.shape == (2, 16) and not features[0].any()
    whole, spread, centre, spread_of_centre = features[1].reshape(4, 4)[:, 2]
    assert whole == 1.0 and centre == 8.0 and spread > 2 and spread_of_centre == 0


def test_networks_without_detail_have_features_of_the_neck() -> None:
    embedding = torch.full((1, PLAIN.embedding_channels, 4, 4, 4), 3.0)
    assert image_features(embedding, PLAIN)[0, :16].eq(3).all()


def test_other_scans_of_the_site_are_alike_and_other_images_are_not() -> None:
    likeness = ImageLikeness.fit(site(1.0, 12, 0), STUDIES, ARBITRARY)
    assert sum(likeness.includes(each[None]) for each in site(1.0, 20, 1)) >= 14
    assert not any(likeness.includes(each[None]) for each in site(3.0, 20, 2))
    assert not any(likeness.includes(each[None]) for each in site(-1.0, 20, 2))


def test_one_strange_study_does_not_make_everything_alike() -> None:
    features = torch.cat([site(1.0, 12, 0), torch.full((1, 5), -9.0)])
    likeness = ImageLikeness.fit(features, [*STUDIES, "strange"], ARBITRARY)
    assert likeness.includes(torch.full((1, 5), -9.0)), "it was learned"
    assert not any(likeness.includes(each[None]) for each in site(3.0, 20, 2))


def test_one_study_is_compared_with_itself() -> None:
    likeness = ImageLikeness.fit(site(1.0, 12, 0), ["only"] * 12, ARBITRARY)
    assert sum(likeness.includes(each[None]) for each in site(1.0, 20, 1)) >= 14
    assert not any(likeness.includes(each[None]) for each in site(3.0, 20, 2))


def test_no_arbitrary_image_is_alike_however_much_the_studies_differ() -> None:
    features, studies = torch.tensor([[9.0] * 5, [-9.0] * 5]), ["a", "b"]
    likeness = ImageLikeness.fit(features, studies, ARBITRARY)
    assert sum(likeness.includes(each[None]) for each in ARBITRARY) <= 1


def test_tensors_rebuild_it() -> None:
    likeness = ImageLikeness.fit(torch.rand(12, 16), STUDIES, torch.rand(9, 16))
    again, probe = ImageLikeness.of(CONFIG, likeness.tensors()), torch.rand(3, 16)
    assert torch.equal(again.distance(probe), likeness.distance(probe))


@pytest.mark.parametrize(
    "damage",
    [
        {"mean": torch.zeros(3)},
        {"known": torch.zeros(0, 16)},
        {"limit": torch.tensor(torch.nan)},
        {"mean": torch.zeros(15), "spread": torch.ones(15), "known": torch.zeros(2, 15)},
        {"other": torch.zeros(1)},
    ],
)
def test_damaged_tensors_are_refused(damage: dict[str, torch.Tensor]) -> None:
    likeness = ImageLikeness.fit(torch.rand(12, 16), STUDIES, torch.rand(9, 16))
    with pytest.raises(ValueError, match="images to compare with"):
        ImageLikeness.of(CONFIG, {**likeness.tensors(), **damage})
    with pytest.raises(ValueError, match="images to compare with"):
        ImageLikeness.of(CONFIG, {})
