"""Tubes along smooth curves, and vascular trees inside an organ."""

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline

from .shapes import FAR_MM, Shape, capsules


def tube(knots: Sequence[tuple[float, float, float, float]], *, bead_mm: float = 0.0) -> Shape:
    """Return a tube along a smooth curve through ``knots`` (x, y, z, radius), RAS mm.

    bead_mm: amplitude of constrictions every 30 mm, as the haustra of the colon.
    """
    knots = np.asarray(knots, float)
    steps = np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1)
    length = np.concatenate([[0], np.cumsum(steps)])
    count = max(int(length[-1] / 6), 2)
    along = np.linspace(0, length[-1], count + 1)
    curve = CubicSpline(length, knots)(along)
    radii = curve[:, 3] + bead_mm * np.sin(2 * np.pi * along / 30)
    return capsules(curve[:-1, :3], curve[1:, :3], np.stack([radii[:-1], radii[1:]], axis=1))


def vessel_tree(
    organ: Shape, root: tuple[float, float, float], *, tips: int, tip_radius: float, seed: int
) -> Shape:
    """Return a tree of vessels from ``root`` to ``tips`` random points inside ``organ``.

    Each point is connected to the node that gives a short path to the root. Radii follow Murray's
    law: the cube of a parent's radius is the sum of its children's cubes.
    """
    nodes = _tree_nodes(organ, root, tips, seed)
    parents = _tree_parents(nodes)
    flow = np.zeros(len(nodes))
    is_leaf = np.ones(len(nodes), bool)
    is_leaf[parents[1:]] = False
    flow[is_leaf] = 1
    for child in range(len(nodes) - 1, 0, -1):  # children come after their parents
        flow[parents[child]] += flow[child]
    radii = tip_radius * np.cbrt(flow[1:])
    narrowing = np.stack([radii, 0.8 * radii], axis=1)
    return capsules(nodes[parents[1:]], nodes[1:], narrowing)


def _tree_nodes(organ: Shape, root, tips: int, seed: int) -> np.ndarray:
    """Return the root and random points at least 3 mm inside the organ, nearest first.

    The result has the shape [tips + 1, 3].
    """
    generator = np.random.default_rng(seed)
    low, high = organ.box_mm
    points = np.empty((0, 3))
    while len(points) < tips:
        candidates = low + (high - low) * generator.random((4 * tips, 3))
        depth = organ.field(*candidates.T.astype(np.float32))
        points = np.concatenate([points, candidates[depth < -3]])
    points = points[:tips]
    order = np.argsort(np.linalg.norm(points - root, axis=1), kind="stable")
    return np.concatenate([[root], points[order]])


def _tree_parents(nodes: np.ndarray) -> np.ndarray:
    """Return the parent index [n] of each node; the root, node 0, is its own parent."""
    parents = np.zeros(len(nodes), int)
    path_mm = np.full(len(nodes), FAR_MM)
    path_mm[0] = 0
    for child in range(1, len(nodes)):
        step = np.linalg.norm(nodes[:child] - nodes[child], axis=1)
        parents[child] = np.argmin(step + 0.45 * path_mm[:child])
        path_mm[child] = path_mm[parents[child]] + step[parents[child]]
    return parents
