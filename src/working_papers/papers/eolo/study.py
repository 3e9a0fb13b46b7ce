"""The study of EOLO: small detectors of textured shapes in five lightings, with an image, events, or both.

All arms of a seed share scenes, lightings, flows and noise, and where they have the same layers also initial weights.
At paper scale they learn E-VOC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from working_papers.bench import Measure, Measurements, Scale, Study, Trial, Trials, Tuning, beats, within
from working_papers.data.folders import data_folder
from working_papers.nn.training import checkpoint_file
from working_papers.papers.eolo import voc
from working_papers.papers.eolo.method import mean_average_precision
from working_papers.papers.eolo.networks import Size, new_detector, parameters
from working_papers.papers.eolo.scenes import CLASSES, LIGHTINGS, Recording, Scenes, draw_scenes, record
from working_papers.papers.eolo.training import (
    Budget,
    Found,
    SceneSet,
    detect,
    event_energy,
    from_voc,
    in_any_light,
    load_image_weights,
    mirrored_or_not,
    recorded,
    train,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORST, NORMAL, MEAN = "mAP50, worst lighting", "mAP50, normal light", "mAP50, mean over lightings"
ELSEWHERE, BLIND = "mAP50, other directions", "mAP50, normal light, events missing"
ENERGY, RATE = "energy of the event backbone", "firing rate"

DEVKIT, WEIGHTS = "VOCdevkit", "eolo-weights"  # folders of WORKING_PAPERS_DATA, at paper scale
WEIGHT_FILES = ("resnet18.pth", "cspdarknet_tiny.pth")
TYPES = ("Underexposure_0.2_random42", "Overexposure_1.0_random42", "Overexposure_5.0_random42")
FIXED_TYPES = tuple(name.removesuffix("_random42") for name in TYPES)
TRAINED_ON, TESTED_ON = (("2007", "trainval"), ("2012", "trainval")), (("2007", "test"),)
FACTORS = (0.2, 1.0, 5.0)
WORKERS = 8
SHOWN = (0, 2, 4)  # lightings of the figure's scene

study = Study(
    question="Does symmetric fusion of image and events detect better in the worst lighting than concatenation or a "
    "fusion in which events only gate the image, does a spiking backbone suffice, and does random flow help?",
    arms={
        "symmetric": "Symmetric fusion (EOLO)",
        "concat": "Concatenation",
        "asymmetric": "Events gate the image",
        "rgb": "Image alone",
        "events": "Events alone",
        "ann": "Symmetric, no spikes",
        "mean": "Symmetric, mean over time",
        "fixed": "Symmetric, one flow",
    },
    method="symmetric",
    seeds={"smoke": 1, "laptop": 5, "paper": 3},
    measures=(
        Measure(
            WORST,
            better="higher",
            unit="points",
            about="The lowest mAP50 of the lightings, exposure factors 0.1, 0.2, 1, 3 and 5.",
        ),
        Measure(NORMAL, better="higher", unit="points", about="mAP50 at exposure factor 1."),
        Measure(MEAN, better="higher", unit="points", about="Mean of mAP50 over the lightings."),
        Measure(
            ELSEWHERE,
            better="higher",
            unit="points",
            about="Mean over lightings of mAP50 on scenes whose flow is at least 45 degrees away from the fixed flow "
            "and its opposite; at paper scale on all, for their flows are not kept.",
        ),
        Measure(
            BLIND,
            better="higher",
            unit="points",
            about="mAP50 at exposure factor 1 with zeros in place of events, which were not missing in training.",
        ),
        Measure(
            ENERGY,
            better="lower",
            about="Estimated, as a share of that of the same layers without spikes: 4.6 pJ a multiply-add, 0.9 pJ an "
            "addition. 0 where there is none.",
        ),
        Measure(RATE, about="Spikes of a neuron at a time step of four, in the event backbone on test scenes."),
    ),
    checks=(
        beats("symmetric", over="concat", on=WORST, claim="symmetric-fusion-is-robust"),
        beats("symmetric", over="asymmetric", on=WORST, claim="symmetric-fusion-is-robust"),
        beats("symmetric", over="rgb", on=NORMAL, by=-2.0, claim="symmetric-fusion-is-robust"),
        beats("symmetric", over="ann", on=MEAN, by=-2.0, claim="spiking-backbone-suffices"),
        within("symmetric", on=ENERGY, high=0.5, claim="spiking-backbone-suffices"),
        beats("symmetric", over="fixed", on=ELSEWHERE, claim="random-flow-synthesis"),
    ),
    tuning=Tuning(
        on=MEAN,
        candidates={
            arm: ({"learning rate": 1.0}, {"learning rate": 2.0})
            for arm in ("symmetric", "concat", "asymmetric", "rgb", "events", "ann", "mean", "fixed")
        },
    ),
    budget="""Every arm gets the same scenes, number of steps, lightings and noise, two learning rates to choose from
        on a tuning seed, and within 5 % the same number of parameters: detectors of one input have wider backbones,
        other fusions wider convolutions. At paper scale backbones keep the paper's widths and begin with the weights
        of ImageNet, so that detectors of one input are smaller.""",
    notes="""The paper trains detectors of 320 pixels on E-VOC and E-MSCOCO with a YOLO head for 50 epochs; here
        detectors of 0.1 million parameters with a head of centres learn 400 synthetic scenes of 32 pixels for eight
        epochs. Events are synthesised from the scene before the camera cuts it off, as in the paper, and so do not
        depend on the lighting; sensor noise (10 % of the pixels silent, 0.5 % firing without cause) keeps them from
        being an oracle. Real event cameras are noisier in the dark. Images are not brightened before they enter; a
        network that does so may do better in the dark. RENet, the paper's rival, was not built: concatenation and
        gating stand for its kind. Energy counts operations, not memory. All frames of a sample are the same, so that
        attention over time sees the dynamics of the neurons alone. No arm is trained with missing events. At paper
        scale, which was not run, one detector of each arm learns three exposures of E-VOC, with the head of centres
        and mirrored images.""",
    sham="concat",
    figure_size=(11.0, 5.4),
)


@dataclass(frozen=True)
class Plan:
    """How large data and trainings are.

    Attributes:
        size: of the detectors.
        side: of the images in pixels.
        train: number of training scenes; 0: E-VOC.
        test: scenes of each lighting.
        budget: of a training, with the rate that a setting of 1 means.
        top: most detections of an image.
    """

    size: Size
    side: int
    train: int
    test: int
    budget: Budget
    top: int

    @classmethod
    def of(cls, scale: Scale) -> Plan:
        """The plan of a scale."""
        return scale.choose(
            smoke=cls(Size(4, (8, 8), 4, 8, 4), 24, 16, 8, Budget(1, 8, 2e-2), 10),
            laptop=cls(Size(8, (16, 32), 4, 24, 4), 32, 400, 150, Budget(8, 16, 2e-2), 20),
            paper=cls(Size(0, (), 8, 128, 16), 320, 0, 0, Budget(50, 32, 5e-4, paper=True), 100),
        )


@dataclass(frozen=True)
class Shared:
    """What the arms of a seed share; at paper scale the folders.

    Attributes:
        train: training scenes.
        test: test scenes.
        recording: test scenes in all lightings.
        devkit: VOCdevkit.
        weights: the folder of ImageNet's weights.
    """

    train: Scenes | None = None
    test: Scenes | None = None
    recording: Recording | None = None
    devkit: Path | None = None
    weights: Path | None = None


@study.prepare
def scenes(seed: int, scale: Scale) -> Shared:
    """Scenes and recordings, or the folders of E-VOC, of which every file is looked for."""
    plan = Plan.of(scale)
    if scale is Scale.PAPER:
        devkit, weights = data_folder(DEVKIT), data_folder(WEIGHTS, needs=WEIGHT_FILES)
        for sets, types in ((TRAINED_ON, TYPES + FIXED_TYPES), (TESTED_ON, TYPES)):
            voc.EventVOC(devkit, sets, types, plan.side)
        return Shared(devkit=devkit, weights=weights)
    generator = torch.Generator().manual_seed(seed)
    train_scenes, test_scenes = (draw_scenes(count, plan.side, generator) for count in (plan.train, plan.test))
    return Shared(train_scenes, test_scenes, record(test_scenes, generator))


def trial_name(trial: Trial) -> str:
    """What tells this trial's training apart from others of the room."""
    return "-".join([trial.arm, str(trial.seed), *(f"{name} {value}" for name, value in trial.setting.items())])


@study.trial
def train_and_detect(trial: Trial, shared: Shared) -> Measurements:
    """Train a detector in mixed lighting and test it in each."""
    plan, large = Plan.of(trial.scale), trial.scale is Scale.PAPER
    classes = len(voc.CLASSES) if large else len(CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        detector = new_detector(trial.arm, plan.size, classes)
    weights = parameters(detector)
    rate = plan.budget.rate * float(trial.setting.get("learning rate", 1.0))
    budget = Budget(plan.budget.epochs, plan.budget.batch, rate, plan.budget.paper)
    checkpoint = checkpoint_file("eolo", trial_name(trial)) if large else None
    data: Any
    if large:
        assert shared.devkit is not None and shared.weights is not None
        load_image_weights(detector, shared.weights)
        data = voc.EventVOC(shared.devkit, TRAINED_ON, FIXED_TYPES if trial.arm == "fixed" else TYPES, plan.side)
        augment: Any = mirrored_or_not
    else:
        assert shared.train is not None
        data, augment = SceneSet(shared.train), in_any_light(trial.arm == "fixed")
    detector = train(
        detector,
        data,
        augment,
        budget,
        trial.seed,
        trial.device,
        checkpoint,
        WORKERS if large else 0,
        progress=lambda share: trial.progress(round(900 * share), of=1000),
    )
    measured = judge(detector, trial, shared, plan, classes)
    measured["parameters"] = weights
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    trial.progress(1000, of=1000)
    return measured


def judge(
    detector: Any, trial: Trial, shared: Shared, plan: Plan, classes: int
) -> dict[str, float | int | np.ndarray[Any, Any]]:
    """All measures of a trained detector."""
    large = trial.scale is Scale.PAPER
    normal = (FACTORS if large else LIGHTINGS).index(1.0)

    def tested(light: int) -> Iterator[voc.Sample]:
        if large:
            assert shared.devkit is not None
            return from_voc(
                voc.EventVOC(shared.devkit, TESTED_ON, (TYPES[light],), plan.side), plan.budget.batch, WORKERS
            )
        assert shared.recording is not None and shared.test is not None
        return recorded(shared.recording, shared.test, light)

    def score(found: Found) -> float:
        return 100 * mean_average_precision(
            found.detections, found.boxes, found.labels, classes, difficult=found.difficult, eleven_points=large
        )

    found = [
        detect(detector, tested(light), trial.device, plan.top) for light in range(len(FACTORS if large else LIGHTINGS))
    ]
    curve = np.array([score(each) for each in found])
    elsewhere = curve
    if shared.recording is not None:
        elsewhere = np.array([score(each.only(shared.recording.elsewhere)) for each in found])
    blind = score(detect(detector, tested(normal), trial.device, plan.top, without_events=True))
    sample = next(iter(tested(normal)))
    share, firing = event_energy(detector, sample.events[:32])
    measured: dict[str, float | int | np.ndarray[Any, Any]] = {
        WORST: float(curve.min()),
        NORMAL: float(curve[normal]),
        MEAN: float(curve.mean()),
        ELSEWHERE: float(elsewhere.mean()),
        BLIND: blind,
        ENERGY: share,
        RATE: firing,
        "curve": curve,
    }
    if shared.recording is not None:
        lit = [shared.recording.photographs[light, 0] for light in SHOWN]
        measured["scene"] = (255 * torch.stack(lit)).round().byte().movedim(1, -1).numpy()
        measured["events"] = shared.recording.events[normal, 0].numpy()
    return measured


@study.figure
def curves_and_scene(trials: Trials, figure: Figure) -> None:
    """mAP50 over exposure of all arms; below, one scene at three exposures and its events."""
    if trials.scale is Scale.PAPER:
        draw_curves(trials, figure.subplots(1, 2, sharey=True, sharex=True))
        return
    halves: Any = figure.subfigures(2, 1, height_ratios=(2.1, 1))
    upper, lower = halves
    draw_curves(trials, upper.subplots(1, 2, sharey=True, sharex=True))
    pictures: Any = lower.subplots(1, len(SHOWN) + 1)
    *photographs, events = pictures
    seen = trials.arrays("symmetric", "scene")[0]
    for axes, image, light in zip(photographs, seen, SHOWN, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(f"exposure {LIGHTINGS[light]:g}", fontsize=9)
    positive, negative = trials.arrays("symmetric", "events")[0]
    events.imshow(np.sign(positive - negative), cmap="RdBu_r", vmin=-1.5, vmax=1.5, interpolation="nearest")
    events.set_title("events", fontsize=9)
    for axes in (*photographs, events):
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])


def draw_curves(trials: Trials, panels: Any) -> None:
    """Means and ranges over seeds: fusions and single inputs on the left, the method's variants on the right."""
    groups = (
        ("What is joined, and how", ("symmetric", "concat", "asymmetric", "rgb", "events")),
        ("What the method is made of", ("symmetric", "ann", "mean", "fixed")),
    )
    factors = FACTORS if trials.scale is Scale.PAPER else LIGHTINGS
    axes: Axes
    for axes, (title, arms) in zip(panels, groups, strict=True):
        for arm in arms:
            curve = trials.arrays(arm, "curve")
            place = np.array(factors) * 1.03 ** (trials.arms.index(arm) - 3)
            middle = curve.mean(axis=0)
            spread = [middle - curve.min(axis=0), curve.max(axis=0) - middle]
            axes.errorbar(place, middle, yerr=spread, fmt="o-", ms=4, color=trials.color(arm), label=trials.label(arm))
        axes.set_xscale("log")
        axes.set_xticks(factors, [f"{each:g}" for each in factors])
        axes.minorticks_off()
        axes.set(title=title, xlabel="exposure factor")
        axes.legend(fontsize=7.5, loc="lower right")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mAP50 (points)")
