"""Trained segmenters in memory: label maps of scans, in Python as on the command line."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from sacl.errors import ConfigError, DataError
from sacl.files.itk import grid_of_itk, is_itk_image, itk_of_labels, volume_of_itk
from sacl.files.nifti import image_of_labels, is_image, volume_of, volume_of_image
from sacl.geometry import require_same_grid, to_native
from sacl.networks.device import resolve_device, time_passes
from sacl.networks.segmenter import restored
from sacl.pack import parts_of_run, read_pack
from sacl.patches.scan_ranges import doubts_about, measures_of
from sacl.patches.window import window_of
from sacl.prediction.coarse import Ensemble, ensemble_of
from sacl.prediction.volume import (
    Predictor,
    finished_map,
    predict_volume,
    predictor_of,
    slice_probabilities,
)
from sacl.run.workspace import Workspace
from sacl.types import Grid, LabelMap, LabelScheme, Volume

Image = TypeVar("Image")
"""An array, or an image of nibabel or SimpleITK."""

Seen = tuple[Volume, tuple[float, float], LabelMap | None]
"""What a segmenter sees of a scan: its voxels, its window and, where it reads one, a coarse map."""

_MOST_ORGAN = 0.6
"""Organs in more of a scan's voxels than this are a doubt."""
_IMAGE = "image"
"""What errors call an image that has no name."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """The label map of a scan, on its canonical grid, and what speaks against believing it.

    `window` is what the first segmenter sees as 0 and 1.
    """

    label_map: LabelMap
    doubts: tuple[str, ...]
    window: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Member:
    """One segmenter of a model, by its name, and the coarse networks that it came with, if any."""

    name: str
    predictor: Predictor
    coarse: Ensemble | None

    def see(self, volume: Volume, scan: str, given: LabelMap | None) -> Seen:
        """Return a scan as the segmenter sees it, located by its own networks if none is given."""
        window = window_of(volume.voxels, self.predictor.spec.window, scan)
        if not self.predictor.needs_coarse:
            return volume, window, None
        self.require_coarse(given is not None)
        if given is None and self.coarse is not None:
            given = self.coarse.locate(volume, window)
        return volume, window, given

    def require_coarse(self, given: bool) -> None:
        """Refuse to go on without a coarse label map where one is read and cannot be made."""
        if self.predictor.needs_coarse and self.coarse is None and not given:
            raise DataError(
                f"{self.name}: has no coarse networks, since another tool made its coarse maps;"
                " give coarse label maps of these scans with --coarse"
            )


@dataclass(frozen=True, eq=False)
class Model:
    """One segmenter, or several of the same organs that predict together, from `load_model`.

    Of several, the mean of their class probabilities on the scan's own grid decides. Nothing of a
    model changes while it predicts, so that several threads may share it; another process loads
    its own, as `again` does.
    """

    members: tuple[Member, ...]
    again: Callable[[], Model] | None = None

    def __post_init__(self) -> None:
        first = self.members[0]
        for other in self.members[1:]:
            specs = [member.predictor.spec for member in (first, other)]
            organs = [", ".join(spec.organs) for spec in specs]
            modality = [spec.window.modality for spec in specs]
            for what, (a, b) in (("organs", organs), ("modality", modality)):
                if a != b:
                    raise ConfigError(
                        f"{first.name} and {other.name}: {what} {a} and {b}; models that predict"
                        " together need the same organs, in the same order, and one modality"
                    )

    @property
    def scheme(self) -> LabelScheme:
        """The organs and their label values."""
        return self.members[0].predictor.spec.label_scheme

    @property
    def modality(self) -> Literal["ct", "mr"]:
        """The modality of the scans that were learned from."""
        return self.members[0].predictor.spec.window.modality

    @property
    def needs_coarse(self) -> bool:
        """Tell whether a coarse label map of every scan is read, given or made by the model."""
        return any(member.predictor.needs_coarse for member in self.members)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides its label maps, the same for a run and its pack."""
        digest = hashlib.sha256()
        for member in self.members:
            predictor, located = member.predictor, member.coarse
            scheme = f"scheme={predictor.spec.label_scheme.name!r}"  # which a pack does not keep
            digest.update(f"{predictor.spec} {predictor.recipe}".replace(scheme, "").encode())
            for network in (predictor.network, *(located.networks if located else ())):
                assert isinstance(network, nn.Module), "what load_model returns"
                for name, value in network.state_dict().items():
                    digest.update(name.encode())
                    digest.update(np.ascontiguousarray(value.cpu()).data)
        return digest.hexdigest()[:16]

    def __reduce__(self) -> Any:
        """Return what loads it again: paths and numbers go to another process, not networks."""
        return (self.again, ()) if self.again else super().__reduce__()

    def key_of(self, volume: Volume, coarse: LabelMap | None, way: str = "") -> str:
        """Return a hash of all that decides a scan's label map, and the `way` it is written."""
        digest = hashlib.sha256(f"{self.fingerprint} {volume.grid.affine.tolist()} {way}".encode())
        for voxels in (volume.voxels, *([] if coarse is None else [coarse.voxels])):
            for k in range(voxels.shape[2]):
                digest.update(np.ascontiguousarray(voxels[:, :, k]).data)
        return digest.hexdigest()

    def require_coarse(self, given: bool) -> None:
        """Refuse to go on without coarse label maps where they are read and cannot be made."""
        for member in self.members:
            member.require_coarse(given)

    def choose_threads(self, scans: int) -> None:
        """Let the first segmenter choose in how many threads it predicts so many scans."""
        first = self.members[0].predictor
        time_passes(first.network, first.device, scans)

    def segment(self, volume: Volume, name: str, coarse: LabelMap | None = None) -> Segmented:
        """Return the label map of a canonical scan, and what speaks against believing it.

        Args:
            volume: The scan, of any size and spacing; HU for CT.
            name: What errors call it.
            coarse: Its coarse label map on the same grid; where one is needed and none is given,
                the model's own networks make it.

        Raises:
            DataError: all voxels are equal, or a coarse label map is missing or on another grid.
        """
        if coarse is not None:
            require_same_grid(volume.grid, coarse.grid, name)
        seen = [member.see(volume, name, coarse) for member in self.members]
        if len(seen) == 1:
            label_map = predict_volume(self.members[0].predictor, *seen[0])
        else:
            label_map = self._together(seen)
        return Segmented(label_map, tuple(self._doubts(volume, label_map)), seen[0][1])

    def predict(self, image: Image, affine: ArrayLike | None = None) -> Image:
        """Return the label map of an image, as an image of the same kind on the same grid.

        What speaks against believing it is a `UserWarning`.

        Args:
            image: An image of nibabel or SimpleITK, or an array `[i, j, k]`; HU for CT.
            affine: Of an array, from (i, j, k) to (x, y, z) in mm, RAS+, `[4, 4]`.

        Raises:
            DataError: it is no such image, not 3-D, not of finite numbers, or all are equal.
        """
        volume, doubts, as_given = _opened(image, affine)
        segmented = self.segment(volume, _IMAGE)
        for doubt in (*doubts, *segmented.doubts):
            warnings.warn(f"in doubt: {doubt}", stacklevel=2)
        return as_given(segmented.label_map)

    def _together(self, seen: Sequence[Seen]) -> LabelMap:
        """Return the label map that the mean of all segmenters' probabilities gives.

        Small components are removed as by the first one. An organ is taken from a coarse map where
        every segmenter takes it from there.
        """
        grid, predictors = seen[0][0].grid, [member.predictor for member in self.members]
        labels = np.zeros(grid.shape, self.scheme.label_type, order="F")
        slices = [
            slice_probabilities(predictor, *scan)
            for predictor, scan in zip(predictors, seen, strict=True)
        ]
        for k, probabilities in enumerate(zip(*slices, strict=True)):
            labels[:, :, k] = torch.stack(probabilities).mean(dim=0).numpy().argmax(axis=0)
        taken = set.intersection(*(set(one.recipe.from_coarse) for one in predictors))
        recipe = replace(predictors[0].recipe, from_coarse=tuple(sorted(taken)))
        coarse = next((coarse for _, _, coarse in seen if coarse is not None), None)
        return finished_map(LabelMap(labels, grid, self.scheme), recipe, coarse)

    def _doubts(self, volume: Volume, label_map: LabelMap) -> list[str]:
        measures, doubts = measures_of(volume), []
        for spec in (member.predictor.spec for member in self.members):
            if spec.scans is not None:
                doubts += doubts_about(measures, spec.scans, spec.window.modality)
        share = np.count_nonzero(label_map.voxels) / label_map.voxels.size
        if share > _MOST_ORGAN:
            doubts.append(
                f"organs fill {share:.0%} of the scan, expected at most {_MOST_ORGAN:.0%}"
            )
        return list(dict.fromkeys(doubts))


def load_model(
    *paths: Path | str,
    device: str = "auto",
    copies: int | None = None,
    keep_component: float | None = None,
) -> Model:
    """Return the segmenter of a finished run or of a pack, or those of several together.

    Args:
        paths: Work directories, and files that `sacl pack` wrote.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        copies: Turned and scaled copies per scan; as in the run where unset.
        keep_component: The share of an organ's largest component below which one is removed; as in
            the run where unset.

    Raises:
        WorkspaceError: a run is not finished.
        ConfigError: the organs of several are not the same.
        DataError: a file is missing or damaged.
        DeviceError: the device is not there.
    """
    if not paths:
        raise ConfigError("load_model: which model? give a work directory or a .sacl file")
    changes: dict[str, Any] = {"copies": copies, "keep_component": keep_component}
    where = resolve_device(device)
    given = {name: value for name, value in changes.items() if value is not None}
    again = partial(load_model, *paths, device=device, **changes)
    return Model(tuple(_member(Path(path), where, given) for path in paths), again)


def _member(path: Path, device: torch.device, changes: Mapping[str, float]) -> Member:
    """Return the segmenter of a run or a pack, its recipe changed."""
    name = path.resolve().name
    parts = parts_of_run(Workspace(path)) if path.is_dir() else read_pack(path)[1]
    recipe = replace(parts.recipe, **changes)  # type: ignore[arg-type]
    predictor = predictor_of(restored(parts.state, parts.text, name), device, recipe)
    return Member(name, predictor, ensemble_of(parts.coarse, device, name))


def _opened(
    image: Any, affine: ArrayLike | None
) -> tuple[Volume, list[str], Callable[[LabelMap], Any]]:
    """Return an image as a canonical volume, what is odd in it, and what turns a map back."""
    if isinstance(image, np.ndarray):
        grid = _grid_of_array(image, affine)
        volume = volume_of(image, 1.0, 0.0, grid, _IMAGE)
        return volume, [], lambda labels: to_native(labels.voxels, grid).copy()
    if affine is not None:
        raise DataError(
            f"{_IMAGE}: give affine only with an array; a {type(image).__name__} has its own"
        )
    if is_image(image):
        volume, frame = volume_of_image(image, _IMAGE)
        doubts = [frame.contradiction] if frame.contradiction else []
        return volume, doubts, lambda labels: image_of_labels(labels, frame)
    if is_itk_image(image):
        native, volume = grid_of_itk(image, _IMAGE), volume_of_itk(image, _IMAGE)
        return volume, [], lambda labels: itk_of_labels(labels, native, image)
    raise DataError(
        f"{_IMAGE}: got {type(image).__name__}, expected an image of nibabel or SimpleITK, or a"
        " NumPy array with its affine"
    )


def _grid_of_array(array: np.ndarray, affine: ArrayLike | None) -> Grid:
    if array.ndim != 3:
        raise DataError(f"{_IMAGE}: an array of shape {array.shape}, expected [i, j, k]")
    if affine is None:
        raise DataError(
            f"{_IMAGE}: where does the array lie? give affine=, the 4 x 4 matrix from (i, j, k) to"
            " (x, y, z) in mm, RAS+"
        )
    i, j, k = array.shape
    return Grid((i, j, k), np.asarray(affine))
