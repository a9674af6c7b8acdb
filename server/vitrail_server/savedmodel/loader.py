"""Loads one version of a model: from a directory to a servable whose programs are traced, measured and warm.

Called on the loading thread. Tracing happens there; every execution of the model goes through `run`, one
batch at a time. The server has this done by a process of its own (`preparing`), where nobody waits for the
device, and by itself only for what that process cannot hand over.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import tensorflow as tf

from vitrail.errors import FailedPrecondition
from vitrail_server.savedmodel.freeze import freeze
from vitrail_server.savedmodel.functions import Forward, Gradient, trace_forward, zeros
from vitrail_server.savedmodel.graph import SIGMOID, SOFTMAX, Graph
from vitrail_server.savedmodel.incremental.allowance import allowance
from vitrail_server.savedmodel.incremental.budget import CacheBudget
from vitrail_server.savedmodel.incremental.capability import reason_against, typical_reason
from vitrail_server.savedmodel.incremental.graph import SizedGraph
from vitrail_server.savedmodel.incremental.preparations import Background, PlannedModel, Preparations
from vitrail_server.savedmodel.incremental.weights import Weights
from vitrail_server.savedmodel.memory import LARGEST_KEPT, release_memory
from vitrail_server.savedmodel.messages import Sizes
from vitrail_server.savedmodel.platform import accelerated
from vitrail_server.savedmodel.precision import TYPES, lowered_forward, require
from vitrail_server.savedmodel.predict import Predictors
from vitrail_server.savedmodel.probe import Run, Sample, common_elements, find_gradient, observe
from vitrail_server.savedmodel.products import products_in
from vitrail_server.savedmodel.programs import BatchProgram, Differentiate, Evaluate
from vitrail_server.savedmodel.resident import ResidentRows
from vitrail_server.savedmodel.signature import (
    Exported,
    NotExplainable,
    batch_size_of,
    per_image_outputs,
    read,
    row_layout,
)
from vitrail_server.savedmodel.warm import Bench
from vitrail_server.servable import (
    Capabilities,
    ChosenBatchSize,
    Description,
    ImageSize,
    ModelSettings,
    OwnProgram,
    Program,
    Signature,
    Task,
    WindowGrid,
)
from vitrail_server.wording import listed, quoted, reason_of
from vitrail_server.work import Kind, PredictRows

log = logging.getLogger(__name__)

Complete = Callable[[Signature], tuple[Signature, ModelSettings]]

NOT_TRIED = "freezing it ended the process that tried it"

TRIAL = 2
"""Images in the batch that probes a model: enough to tell a row per image and a dependent batch."""


class SavedModelLoader:
    """Loads SavedModels with TensorFlow.

    No batch takes longer than `time_slice` seconds or, by estimate, more than `batch_bytes` of memory, as
    far as the model can be run in smaller ones.
    """

    def __init__(
        self,
        *,
        time_slice: float,
        batch_bytes: int,
        planning: "Planning | None" = None,
        sizes: Sizes | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Without `planning`, incremental occlusions are only said to be possible.

        What is in `sizes` is not measured again.
        """
        self._sizes = sizes or {}
        self._planning = planning
        self._time_slice = time_slice
        self._batch_bytes = batch_bytes
        self._clock = clock

    def load(
        self,
        *,
        name: str,
        version: int,
        path: Path,
        complete: Complete,
        run: Run,
        freezes: bool = True,
    ) -> "LoadedModel":
        """Return the version whose SavedModel is at `path`, ready to serve.

        `complete` gives the part of the signature that is served and the settings that fit it: an image
        input of the shape (batch, height, width, channels) and the sizes where these are free, or why the
        model has none. `run` executes a call on the device's thread at the lowest priority and returns
        its result. Unless it `freezes`, forwards run on the signature.

        Raises:
            FailedPrecondition: the model cannot be served; the message says why and what would work.
            OutOfMemory: not even one image fits.

        """
        exported = read(path)
        signature, settings = complete(exported.signature)
        require(settings.precision)
        # The task and the rest are filled in when they are known.
        known = Description(name, version, signature, settings, "REGRESSION", frozenset(), {}, Capabilities())
        if settings.image_input is not None:
            try:
                return self._explained(exported, known, run, freezes=freezes)
            except NotExplainable as error:
                settings = replace(settings, image_input=None, image_reason=error.message)
        if settings.precision != "FP32":
            raise FailedPrecondition(
                f"parameter 'vitrail.precision' is {settings.precision}, which is for models with an image: "
                f"{settings.image_reason}"
            )
        forward = trace_forward(exported, tuple(signature.outputs))
        seconds = self._warm(forward, signature, run)
        return LoadedModel(_unexplained(known, settings), forward, whole=forward, seconds=seconds)

    def _explained(self, exported: Exported, known: Description, run: Run, *, freezes: bool) -> "LoadedModel":
        """Return the version with the programs that explain it.

        Raises:
            NotExplainable: the model can only predict.

        """
        signature, settings = known.signature, known.settings
        samples = samples_of(known)
        sample, *others = samples.values()

        forward = trace_forward(exported, per_image_outputs(signature))
        graph = Graph(forward.concrete)
        behaviour = observe(forward, batch_size_of(signature), sample, run)
        elements = common_elements(forward, behaviour, others, run)
        if settings.score_tensor is not None and settings.score_tensor not in elements:
            raise FailedPrecondition(
                f"parameter 'vitrail.score_tensor' is {quoted(settings.score_tensor)}, which has no row of "
                f"numbers per image: it must be one of {listed(elements)}"
            )
        frozen_reason = NOT_TRIED
        if freezes:
            forward, frozen_reason = freeze(forward, behaviour, sample, run)
        difference = 0.0
        if (precision := settings.precision) in TYPES:
            forward, difference = lowered_forward(forward, frozen_reason, precision, behaviour, sample, run)
        gradient, gradient_reason = find_gradient(exported, tuple(elements), behaviour, sample, run)

        forward.products = products_in(precision, accelerated=accelerated())
        if gradient:
            gradient.products = forward.products

        bench = Bench(
            run=run,
            clock=self._clock,
            time_slice=self._time_slice,
            batch_bytes=self._batch_bytes,
            # Memory for more would be asked for, page by page, in every batch.
            input_bytes=None if accelerated() else LARGEST_KEPT,
            max_batch_size=settings.max_batch_size,
            fixed_batch_size=behaviour.only_batch_size,
            activations=graph.activations(),
        )
        rows = ResidentRows() if accelerated() else None
        programs: dict[tuple[Kind, ImageSize], BatchProgram] = {}
        for size, each in samples.items():
            known_size = self._sizes.get((settings.max_batch_size, precision, Kind.FORWARD, size))
            programs[Kind.FORWARD, size] = bench.program(
                Evaluate(forward, rows), each, min(elements), known_size
            )
            if gradient:
                tried = min(gradient.differentiable)
                known_size = self._sizes.get((settings.max_batch_size, precision, Kind.GRADIENT, size))
                programs[Kind.GRADIENT, size] = bench.program(
                    Differentiate(gradient), each, tried, known_size
                )

        graphs: Mapping[ImageSize, SizedGraph] = {}
        incremental_reason = reason_against(settings, behaviour, forward, frozen_reason)
        if not incremental_reason:
            try:
                graphs = sized_graphs(known, forward)
                incremental_reason = typical_reason(graphs)
            except Exception as error:  # whatever it is, the full forward still works
                log.exception("the graph of model %s could not be read for incremental occlusion", known.name)
                incremental_reason = f"the graph could not be read: {reason_of(error)}"
        producers = {name: graph.producer(place) for place, name in enumerate(forward.outputs)}
        description = replace(
            known,
            task=settings.task or _task(settings, producers, elements),
            probabilities=frozenset(name for name in elements if producers[name] in (SOFTMAX, SIGMOID)),
            output_elements=elements,
            capabilities=Capabilities(
                gradient_reason=gradient_reason,
                occlusion_reason=behaviour.company_reason,
                frozen_reason=frozen_reason,
                incremental_reason=incremental_reason,
                batch_dependent=behaviour.batch_dependent,
                non_deterministic=behaviour.non_deterministic,
                fixed_batch_size=behaviour.fixed_batch_size,
                batch_sizes=tuple(
                    ChosenBatchSize(kind, size, program.batch_size, program.seconds)
                    for (kind, size), program in programs.items()
                ),
                precision_difference=difference,
            ),
        )
        served = tuple(signature.outputs)
        whole = forward
        if missing := [name for name in served if name not in forward.outputs]:
            if precision in TYPES:
                names = listed(map(quoted, missing))
                raise FailedPrecondition(
                    f"parameter 'vitrail.precision' is {precision}, and {names} cannot be computed in it, "
                    "without a row of numbers per image; list only other outputs in the configuration"
                )
            whole = trace_forward(exported, served)
            whole.products = forward.products
            self._warm(whole, signature, run)
        preparations = None
        if self._planning and not incremental_reason:
            preparations = self._planning.preparations(description, forward, graphs, samples, programs, run)
        return LoadedModel(description, forward, gradient, programs, preparations, whole=whole)

    def _warm(self, forward: Forward, signature: Signature, run: Run) -> float:
        """Run one row of zeros, and return the seconds that it takes once it is warm; 0 if it fails."""
        inputs = {name: zeros(spec) for name, spec in signature.inputs.items()}
        try:
            run(lambda: forward(inputs, forward.outputs))
            began = self._clock()
            run(lambda: forward(inputs, forward.outputs))
        except tf.errors.OpError as error:
            # Zeros may be no input for this model; what is asked of it later is its caller's business.
            log.info("a row of zeros does not run: %s", reason_of(error))
            return 0.0
        return self._clock() - began


@dataclass(frozen=True, slots=True)
class Planning:
    """Where plans of incremental occlusions are made, and within which bounds."""

    background: Background
    budget: CacheBudget
    time_slice: float
    clock: Callable[[], float] = time.perf_counter

    def preparations(
        self,
        description: Description,
        forward: Forward,
        graphs: Mapping[ImageSize, SizedGraph],
        samples: Mapping[ImageSize, Sample],
        programs: Mapping[tuple[Kind, ImageSize], Program],
        run: Run,
    ) -> Preparations:
        """Return where the plans of a model are made; its forward is a flat graph."""
        if forward.flat is None:
            raise ValueError("a model on its signature has no graph to plan with")
        model = PlannedModel(
            graphs=graphs,
            weights=Weights(forward.flat.constants, forward.held),
            forward=forward,
            inputs=forward.inputs,
            outputs=forward.outputs,
            explained=tuple(description.output_elements),
            samples=samples,
            programs={size: programs[Kind.FORWARD, size] for size in samples},
            max_batch_size=description.settings.max_batch_size,
            allowance=allowance(forward.flat.constant_bytes, graphs, samples, programs),
            products=forward.products,
        )
        return Preparations(
            model,
            run=run,
            background=self.background,
            budget=self.budget,
            time_slice=self.time_slice,
            clock=self.clock,
        )


class LoadedModel:
    """One loaded version: a `servable.Servable`."""

    def __init__(
        self,
        description: Description,
        forward: Forward,
        gradient: Gradient | None = None,
        programs: Mapping[tuple[Kind, ImageSize], BatchProgram] | None = None,
        preparations: Preparations | None = None,
        *,
        whole: Forward,
        seconds: float = 0.0,
    ) -> None:
        """`forward` and `gradient` are what `programs` are made of; `whole` has all outputs served."""
        self.description = description
        self.forward: Forward | None = forward
        self.gradient = gradient
        self.programs = dict(programs or {})
        self._preparations = preparations
        self._predictors: Predictors | None = Predictors(
            whole, max(1, description.settings.max_request_batch), seconds=seconds
        )

    def settle(self, loaded: int, report: Callable[[int], object]) -> None:
        """Take what the process grew by while it was loaded, and `report` what it takes.

        That is done now, and whenever a plan comes or goes, from any thread.
        """
        if self._preparations is None:
            report(loaded)
        else:
            self._preparations.settle(loaded, report)

    def program(self, kind: Kind, image_size: ImageSize) -> Program:
        """Return the program for images of one of the sizes served.

        Raises:
            FailedPrecondition: there is no image to explain, or gradients are asked for and do not exist.

        """
        if self.description.settings.image_input is None:
            raise FailedPrecondition(self.description.settings.image_reason)
        if kind is Kind.GRADIENT and self.description.capabilities.gradient_reason:
            raise FailedPrecondition(self.description.capabilities.gradient_reason)
        return self.programs[kind, image_size]

    def incremental(self, image_size: ImageSize, grid: WindowGrid) -> OwnProgram | None:
        """Return a program for one occlusion with these windows; None: it runs in full."""
        return None if self._preparations is None else self._preparations.program(image_size, grid)

    def predictor(self, rows: PredictRows) -> Program:
        """Return the program for an inference; rows of the same shapes get the same one."""
        if self._predictors is None:
            raise RuntimeError("the version is closed")
        size = self._image_size(rows)
        return self._predictors.program(rows) if size is None else self.programs[Kind.FORWARD, size]

    def close(self) -> None:
        """Give the memory back; called once, after the last handle is released."""
        self.programs.clear()
        self.forward = self.gradient = self._predictors = None
        if self._preparations is not None:
            self._preparations.close()
        release_memory()

    def _image_size(self, rows: PredictRows) -> ImageSize | None:
        """Return the size of the images whose program takes these rows; None if none does."""
        description = self.description
        if description.settings.image_input is None or not rows.batched:
            return None
        if not set(rows.outputs) <= description.output_elements.keys():
            return None
        height, width = rows.inputs[description.image.name].shape[1:3]
        return (height, width) if (height, width) in description.image_sizes else None


def _unexplained(known: Description, settings: ModelSettings) -> Description:
    reason = settings.image_reason
    return replace(
        known,
        settings=settings,
        task=settings.task or ("CLASSIFICATION" if settings.labels else "REGRESSION"),
        capabilities=Capabilities(gradient_reason=reason, occlusion_reason=reason, incremental_reason=reason),
    )


def sized_graphs(known: Description, forward: Forward) -> dict[ImageSize, SizedGraph]:
    """Return the graph of a forward for each image size."""
    if forward.flat is None:
        raise ValueError("a model on its signature has no graph to plan with")
    image = forward.flat.inputs[forward.inputs.index(known.image.name)]
    return {size: SizedGraph(forward.flat, image, size) for size in known.image_sizes}


def samples_of(known: Description) -> dict[ImageSize, Sample]:
    """Return random images to try a model with, by size."""
    image_input = known.image.name
    count = min(TRIAL, known.settings.max_batch_size or TRIAL)
    return {
        size: Sample(row_layout(known.signature, image_input, size), known.settings.image_range, count)
        for size in known.image_sizes
    }


def _task(settings: ModelSettings, producers: Mapping[str, str], elements: Mapping[str, int]) -> Task:
    classifies = any(
        producers[name] == SIGMOID or (producers[name] == SOFTMAX and count > 1)
        for name, count in elements.items()
    )
    return "CLASSIFICATION" if classifies or settings.labels else "REGRESSION"
