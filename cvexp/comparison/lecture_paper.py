"""The lecture's tables as published: every number with the paper it is from, and where the lecture's slide says something else.

Numbers only; which of our runs stands beside which row is `PaperRow.models`, names of ``conf/model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

K40 = "Nvidia K40, VGG-16, trained on VOC 2007 trainval, tested on VOC 2007 test; proposals on the CPU."
TITAN_X = "Nvidia Titan X (Maxwell), batch 1; Redmon et al., arXiv 1506.02640, table 1."
YOLO_TABLE = "Redmon et al., arXiv 1506.02640, table 1."
FAST = "Girshick, Fast R-CNN, ICCV 2015 (arXiv 1504.08083)"
FASTER = "Ren et al., Faster R-CNN (arXiv 1506.01497)"


@dataclass(frozen=True)
class Said:
    """A published number.

    Attributes:
        value: as calculated with.
        text: as printed; empty: the value with as many digits as it needs.
        notes: its source, and what to know before comparing it; each becomes a footnote.
    """

    value: float
    text: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text or f"{self.value:g}"


@dataclass(frozen=True)
class PaperRow:
    """A row of a table of the lecture.

    Attributes:
        name: as the lecture has it.
        models: names of ``conf/model`` whose runs stand beside it; empty: a system that is not rebuilt.
        said: published numbers by name.
        train: what the published model was trained on.
        external: its proposals are made before the network (selective search), and take time of their own.
        notes: footnotes of the row's name.
    """

    name: str
    models: tuple[str, ...]
    said: Mapping[str, Said] = field(default_factory=dict)
    train: str = ""
    external: bool = False
    notes: tuple[str, ...] = ()


REGIONS = (
    PaperRow(
        "R-CNN",
        ("rcnn",),
        {
            "seconds": Said(48.5, notes=(f"47.0 s of network ({FAST}, table 4) and 1.5 s of selective search; {K40}"
                                         " 50 s on the slide.",)),
            "network": Said(47.0, notes=(f"{FAST}, table 4; {K40} 49 s on a widespread slide, with proposals; not confirmed.",)),
            "hours": Said(84, notes=(f"{FAST}, table 4; {K40}",)),
            "map": Said(66.0, "66.0", (f"With box regression, VGG-16, VOC 2007; {FAST}, table 1.",)),
        },
        external=True,
    ),
    PaperRow(
        "SPPnet",
        ("sppnet",),
        {
            "network": Said(2.3, notes=(f"Five scales; {FAST}, table 4; {K40} 4.3 s on a widespread slide, with proposals; not"
                                        " confirmed.",)),
            "hours": Said(25, notes=(f"{FAST}, table 4 (its text says 25.5, as the slide does); {K40}",)),
            "map": Said(63.1, "63.1", (f"VGG-16, five scales, VOC 2007; {FAST}, table 1.",)),
        },
        external=True,
    ),
    PaperRow(
        "Fast R-CNN",
        ("fast_rcnn",),
        {
            "seconds": Said(1.83, notes=(f"146 ms of convolutions, 1510 ms of selective search, 174 ms of regions; {FASTER},"
                                         f" table 5; {K40} 2 s on the slide.",)),
            "network": Said(0.32, notes=(f"0.22 s with truncated SVD; {FAST}, table 4; {K40} 2.3 s on a widespread slide, with"
                                         " proposals; not confirmed.",)),
            "hours": Said(9.5, notes=(f"{FAST}, table 4; {K40} 8.75 h on a widespread slide; not confirmed.",)),
            "map": Said(66.9, "66.9", (f"VGG-16, VOC 2007; {FAST}, table 1.",)),
        },
        external=True,
    ),
    PaperRow(
        "Faster R-CNN",
        ("faster_rcnn",),
        {
            "seconds": Said(0.198, notes=(f"141 ms of convolutions, 10 ms of proposals, 47 ms of regions; {FASTER}, table 5;"
                                          f" {K40} 0.2 s on the slide.",)),
            "network": Said(0.198, notes=(f"Its proposals are made by the network, 10 ms; {FASTER}, table 5; {K40}",)),
            "map": Said(69.9, "69.9", (f"66.9 on the slide, 69.9 in the paper ({FASTER}, table 3: VOC 2007 alone, 300 proposals,"
                                       " shared features; 73.2 with VOC 2012). The slide's 66.9 is of selective search.",)),
        },
    ),
)  # fmt: skip
"""R-CNN to Faster R-CNN: ``seconds`` per image with proposals, ``network`` seconds without, training ``hours``, ``map`` in %."""

SPEED_UP_NOTE = (
    "The slide's 1x, 25x and 250x are ratios of rounded seconds (50 / 2 and 50 / 0.2); unrounded they are 26.5x and 245x. Our"
    " ratios are of unrounded seconds."
)

YOLO = (
    PaperRow("100Hz DPM", (), {
        "map": Said(16.0, "16.0", ("Sadeghi and Forsyth, ECCV 2014.",)),
        "fps": Said(100, notes=("Sadeghi and Forsyth, ECCV 2014: all 20 classes at once; whether CPU or GPU is not confirmed.",)),
    }, "2007", notes=("Not rebuilt; our deformable part model is the row DPM.",)),
    PaperRow("30Hz DPM", (), {
        "map": Said(26.1, "26.1", ("Sadeghi and Forsyth, ECCV 2014.",)),
        "fps": Said(30, notes=("Sadeghi and Forsyth, ECCV 2014: all 20 classes at once; whether CPU or GPU is not confirmed.",)),
    }, "2007", notes=("Not rebuilt; our deformable part model is the row DPM.",)),
    PaperRow("Fast YOLO", ("fast_yolo",), {
        "map": Said(52.7, "52.7", (YOLO_TABLE,)), "fps": Said(155, notes=(TITAN_X,)),
    }, "2007+2012"),
    PaperRow("YOLO", ("yolov1",), {
        "map": Said(63.4, "63.4", (YOLO_TABLE,)), "fps": Said(45, notes=(TITAN_X,)),
    }, "2007+2012"),
    PaperRow("DPM", ("dpm",), {
        "map": Said(33.7, "33.7", ("Version 5 on HOG; Girshick et al., R-CNN, CVPR 2014 (arXiv 1311.2524).",)),
        "fps": Said(0.07, notes=("The reference of Sadeghi and Forsyth, ECCV 2014, there with mAP 33; hardware not confirmed.",)),
    }, "2007", notes=("Not a row of the slide.",)),
    PaperRow("Fastest DPM", (), {
        "map": Said(30.4, "30.4", ("Yan et al., CVPR 2014, as cited by " + YOLO_TABLE,)),
        "fps": Said(15, notes=("Yan et al., CVPR 2014, as cited by " + YOLO_TABLE,)),
    }, "2007", notes=("Not rebuilt; our deformable part model is the row DPM.",)),
    PaperRow("R-CNN minus R", ("rcnn_minus_r",), {
        "map": Said(53.5, "53.5", ("Lenc and Vedaldi, BMVC 2015, as cited by " + YOLO_TABLE,)),
        "fps": Said(6, notes=("160 ms, on a GPU that the table does not name; as cited by " + YOLO_TABLE,)),
    }, "2007"),
    PaperRow("Fast R-CNN", ("fast_rcnn",), {
        "map": Said(70.0, "70.0", (f"{FAST}; trained on VOC 2007 and 2012.",)),
        "fps": Said(0.5, notes=("With selective search; the table does not name the hardware, the paper's own times are of a K40;"
                                " as cited by " + YOLO_TABLE,)),
    }, "2007+2012", external=True),
    PaperRow("Faster R-CNN VGG-16", ("faster_rcnn",), {
        "map": Said(73.2, "73.2", (f"{FASTER}; trained on VOC 2007 and 2012.",)),
        "fps": Said(7, notes=(f"Titan X, timed by the authors of YOLO (arXiv 1506.02640); 5 on a K40 in the paper itself"
                              f" ({FASTER}).",)),
    }, "2007+2012"),
    PaperRow("Faster R-CNN ZF", ("faster_rcnn_zf",), {
        "map": Said(62.1, "62.1", (YOLO_TABLE + " 59.9 in " + FASTER + ", trained on VOC 2007 alone.",)),
        "fps": Said(18, notes=(f"Titan X, timed by the authors of YOLO (arXiv 1506.02640); 17 on a K40 in the paper itself"
                               f" ({FASTER}).",)),
    }, "2007+2012"),
    PaperRow("YOLO VGG-16", ("yolo_vgg16",), {
        "map": Said(66.4, "66.4", (YOLO_TABLE,)), "fps": Said(21, notes=(TITAN_X,)),
    }, "2007+2012"),
)  # fmt: skip
"""The YOLO table: ``map`` in % on VOC 2007 test, ``fps``. Its hardware is mixed; each row names its own."""

DEEPFACE = "Taigman et al., DeepFace, CVPR 2014"
FACENET = "Schroff et al., FaceNet, CVPR 2015 (arXiv 1503.03832)"
FACES = (
    PaperRow("Human", (), {
        "accuracy": Said(97.53, notes=(f"{DEEPFACE}; not confirmed to the digit, its text says over 97.5.",)),
    }, notes=("No program.",)),
    PaperRow("DeepFace, inner product", ("deepface",), {
        "accuracy": Said(95.92, notes=(f"{DEEPFACE}: one network, unsupervised (no pair of LFW was learned from).",)),
    }, "4.4 M photos"),
    PaperRow("DeepFace, chi-squared", (), {
        "accuracy": Said(97.00, "97.00", (f"{DEEPFACE}: one network, weights learned on LFW, restricted protocol.",)),
    }, "4.4 M photos", notes=("One of several readings of the same network; ours is the row of the inner product.",)),
    PaperRow("DeepFace, ensemble", (), {
        "accuracy": Said(97.35, notes=(f"{DEEPFACE}: several networks and a Siamese one, unrestricted protocol.",)),
    }, "4.4 M photos", notes=("An ensemble is not rebuilt.",)),
    PaperRow("FaceNet", ("facenet",), {
        "accuracy": Said(98.87, "98.87 ± 0.15", (f"{FACENET}: centre crops, as ours; 99.63 ± 0.09 with a face detector. ± is the"
                                                 " standard error of ten folds.",)),
    }, "100-200 M photos"),
    PaperRow("OpenFace nn4.small2", (), {
        "accuracy": Said(92.92, notes=("The OpenFace project's own figure; it is trained on public photos.",)),
    }, notes=("Not rebuilt.",)),
    PaperRow("Inception-ResNet-v1, VGGFace2", (), {
        "accuracy": Said(99.65, notes=("The figure of D. Sandberg's program facenet; 99.05 trained on CASIA-WebFace.",)),
    }, "", notes=("Not rebuilt.",)),
    PaperRow("ResNet-29 of dlib", ("face_resnet29",), {}, notes=("Published weights, measured only; no paper, and no row of the"
                                                                " slide.",)),
)  # fmt: skip
"""LFW accuracies in %: View 2, ten folds."""


def speed_up(first: float | None, other: float | None) -> float | None:
    """How many times faster ``other`` seconds are than ``first``, unrounded: 48.5 and 1.83 are 26.5; None without both."""
    return first / other if first and other else None
