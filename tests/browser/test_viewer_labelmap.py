"""`labelmap.js` puts a mask in its place for all 48 orders and directions of the stored axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from serving import RunningServer

pytestmark = pytest.mark.browser

SHAPE = (5, 4, 3)
"""SHAPE: of the viewer's volume."""

SPACING_MM = np.array([0.7, 1.3, 2.9])
ORIGIN_LPS = np.array([-20.0, 31.0, 7.5])

WRITE = """async ([path, volume, place, voxels, segment]) => {
    const {Labelmap, runsOf} = await import(path);
    const [columns, rows, count] = volume.dimensions;
    const slices = Array.from({length: count}, () => new Uint8Array(columns * rows));
    const labelmap = new Labelmap(volume, k => slices[k]);
    const mask = {place, runs: runsOf(Uint8Array.from(voxels), place.size_ijk[0])};
    const {changed} = labelmap.replace(segment, null, mask);
    const grid = {shape_ijk: place.size_ijk, affine_lps: place.affine_lps};
    const drawn = slices.map(slice => [...slice]);
    const stored = [...labelmap.stored(grid)];
    labelmap.replace(segment, mask, null);
    const left = slices.some(slice => slice.some(Boolean));
    return {drawn, stored, changed, left};
}"""


@pytest.fixture(scope="module")
def page(browser: Browser, ball_server: RunningServer) -> Iterator[Page]:
    """A page of the server, whose modules it may import."""
    page = browser.new_page()
    page.goto(f"{ball_server.url}/viewer/extension/labelmap.js")
    yield page
    page.close()


@pytest.mark.parametrize("order", itertools.permutations(range(3)), ids=str)
def test_masks_land_in_their_place(page: Page, order: tuple[int, int, int]) -> None:
    """The expected labelmap follows from numpy's own transpose and flip."""
    generator = np.random.default_rng(3)
    for signs in itertools.product((1, -1), repeat=3):
        expected = (generator.random(SHAPE) > 0.5).astype(np.uint8) * 7
        flipped = [axis for axis, sign in enumerate(signs) if sign < 0]
        stored = np.flip(expected, flipped).transpose(order) // 7
        affine = np.eye(4)
        corner = [SHAPE[axis] - 1 if axis in flipped else 0 for axis in range(3)]
        affine[:3, 3] = ORIGIN_LPS + SPACING_MM * corner
        affine[:3, :3] = (np.eye(3) * SPACING_MM * signs)[:, order]
        volume = {
            "dimensions": list(SHAPE),
            "origin": ORIGIN_LPS.tolist(),
            "spacing": SPACING_MM.tolist(),
            "direction": np.eye(3).ravel().tolist(),
        }
        place = {"size_ijk": list(stored.shape), "affine_lps": affine.tolist()}
        voxels = stored.ravel(order="F").tolist()
        path = "/viewer/extension/labelmap.js"
        result = page.evaluate(WRITE, [path, volume, place, voxels, 7])
        drawn = np.array(result["drawn"]).reshape(SHAPE[::-1]).T
        np.testing.assert_array_equal(drawn, expected)
        np.testing.assert_array_equal(result["stored"], [voxel * 7 for voxel in voxels])
        assert result["changed"] == np.flatnonzero(expected.any(axis=(0, 1))).tolist()
        assert not result["left"]


def test_another_grid_is_refused(page: Page) -> None:
    volume = {
        "dimensions": list(SHAPE),
        "origin": [0, 0, 0],
        "spacing": [1, 1, 1],
        "direction": np.eye(3).ravel().tolist(),
    }
    for affine in (np.diag([1, 1, 1.2, 1]), np.eye(4) + 0.5 * np.eye(4, k=3)):
        place = {"size_ijk": [2, 2, 2], "affine_lps": affine.tolist()}
        with pytest.raises(Exception, match="another grid"):
            page.evaluate(WRITE, ["/viewer/extension/labelmap.js", volume, place, [1] * 8, 1])
