"""One worker, in this process."""

from __future__ import annotations

from ..errors import EXIT_FAILED
from ..formatting import counted
from ..process.devices import choose_device, share_cores
from ..process.logging import info, start_log, warn
from .options import WorkerOptions


def run_worker(options: WorkerOptions) -> int:
    """Run trials of a study until its budget is spent; returns the exit code.

    Raises:
        UserError: the study file, the data, the networks or the database are not usable, or the
            study was made to measure something else.
        StopError: the process was asked to stop; the running trial is queued again.
    """
    choose_device(options.device)
    from ..study.config import load_study_file

    config = load_study_file(options.study).on_drawings(
        options.alphabet, options.drawings, options.train
    )
    if options.sampler is not None:
        sampler = config.sampler.model_copy(update={"name": options.sampler, "options": {}})
        config = config.model_copy(update={"sampler": sampler})
    import optuna

    from ..artifacts.uploads import Gallery
    from ..pruners.promotion import Promotion, promotion_of
    from ..pruners.racing import RacingPruner
    from ..samplers.wrapping import WrappingSampler
    from ..storage.tables import FINISHED
    from ..storage.url import study_argument
    from ..study.create import join
    from ..study.manifest import make_manifest
    from ..trial.calls import CallKeys, KeptCalls
    from ..trial.run import runs_of
    from .callbacks import load_callback
    from .display import Display
    from .loop import Loop, WorkerFailedError
    from .objective import Objective
    from .preview import print_preview
    from .speeds import other_speed
    from .summary import print_summary
    from .visuals import Visuals

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Optuna logs tracebacks as warnings
    threads = options.threads or share_cores(options.workers)
    method, problem = config.load_method(), config.load_problem(options.data)
    method.prepare(options.device, threads)
    manifest, n_instances = make_manifest(config, problem), len(problem.instances())
    url = config.storage_url(options.storage)
    place = config.artifacts_place(options.storage, options.artifacts)
    visuals = Visuals(Gallery(place), problem)
    if options.dry_run:
        print_preview(config, problem.instances(), url, manifest)
        return 0
    start_log("worker")  # until the worker has a name in the study
    study, storage = join(config, url, manifest, options.seed)
    start_log(storage.worker)
    if options.in_pool:
        from .pool import stop_with_parent

        stop_with_parent()
    budget = config.budget.model_copy(
        update={
            name: value
            for name, value in (("trials", options.trials), ("seconds", options.seconds))
            if value is not None
        }
    )
    finished = len(study.get_trials(deepcopy=False, states=FINISHED))
    info(
        f"study {config.name}: {counted(n_instances, 'instance')}, {finished} trials finished, "
        f"{counted(threads, 'thread')}"
    )
    runs = runs_of(study.get_trials(deepcopy=False))
    if (sentence := other_speed(runs, method.speed())) is not None:
        warn(sentence)
    kept = KeptCalls(storage, study._study_id, CallKeys(method, problem, manifest))
    promotion = promotion_of(study.pruner, problem.instances()) if kept.is_on else None
    objective = Objective(config, problem, visuals, options.together, kept, promotion)

    def forget() -> None:
        for part in (study.sampler, study.pruner, objective, promotion):
            if isinstance(part, (WrappingSampler, RacingPruner, Objective, Promotion)):
                part.forget()

    with Display(config.name, budget.trials, finished) as display:
        loop = Loop(
            study=study,
            storage=storage,
            run=objective,
            budget=budget,
            recovery=config.recovery,
            display=display,
            feasible_s=config.feasible_s,
            feasible_cost=config.limits.cost,
            plot=visuals.of_trial,
            promotion=promotion,
            forget=forget,
            after_trial=load_callback(config.callbacks.after_trial),
        )
        try:
            info(f"done: {loop.work()}")
        except WorkerFailedError as error:
            warn(str(error))
            return EXIT_FAILED
    if not options.in_pool:
        print_summary(study, config, study_argument(options.study, options.storage), url)
    return 0
