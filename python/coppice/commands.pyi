# Written by tools/write_stubs.
import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, overload

from coppice.progress import ProgressState
from coppice.results import Conversion, Expansion, Inference, Inspection, Result, Verification

_Path: TypeAlias = str | os.PathLike[str]
_Progress: TypeAlias = bool | Callable[[ProgressState], object] | None

__all__ = ['convert', 'cost', 'expand', 'inspect', 'verify']

def convert(
    model: _Path | Sequence[_Path],
    out: _Path,
    *,
    progress: _Progress = True,
    to: str | int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    granularity: int | None = None,
    recipe: str | int | None = None,
    no_virtual_group: bool = False,
    routing: str | int | None = None,
    scale: str | int | None = None,
    calibrate: bool = False,
    every: int | None = None,
    layers: int | Sequence[int] | None = None,
    shared_expert: int | None = None,
    expert_init: str | int | None = None,
    init_all: bool = False,
    router: str | int | None = None,
    router_rows: _Path | None = None,
    trunk: str | int | None = None,
    dense_average: bool = False,
    lossy: bool = False,
    seed: int | None = None,
    max_shard_bytes: str | int | None = '5GB',
    threads: int | None = None,
    resume: bool = False,
    part: str | int | None = None,
    dry_run: bool = False,
    config: _Path | None = None,
) -> Conversion:
    """Write a dense model, or several, as a Mixture of Experts to the directory `out`.

    Parameters
    ----------
    model : path or list of path
        Dense model in Hugging Face format (never changed), or several of the same shape.
    out : path
        Directory of the converted model; must not exist.
    progress : bool or callable, default True
        True: a bar of tqdm where it is installed. A function gets a `ProgressState` now and
        then, in this thread. False: nothing.
    to : str or int, optional
        Family of OUT: `coppice list conversions` (default: the closest to MODEL's).
    experts : int, optional
        Number of experts per layer (default: 8 times the granularity).
    top_k : int, optional
        Experts per token (default: 2 times the granularity).
    granularity : int, optional
        Cut the feed-forward layer into N slices; each expert is one slice (default: 1).
    recipe : str or int, optional
        A named set of options (`coppice list convert-recipes`); options given here override
        it.
    no_virtual_group : bool, default False
        Give every expert its own router row, instead of one row for the slices that form a
        dense layer.
    routing : str or int, optional
        softmax_topk or topk_softmax (default: as the family of OUT computes it).
    scale : str or int, optional
        How experts are scaled to make up for their gates: `coppice list scales` (default:
        cbrt).
    calibrate : bool, default False
        Compute that scale from the gates of random logits instead of equal gates.
    every : int, optional
        Give experts to every N-th layer only.
    layers : int or list of int, optional
        Give experts to these layers only, such as 1,3,5.
    shared_expert : int, optional
        Add a shared expert of this width; its output is 0 at first.
    expert_init : str or int, optional
        How the second and later experts of a slice are made: `coppice list expert-init`;
        NAME or NAME:key=value (default: copy).
    init_all : bool, default False
        Apply --expert-init to the first expert of each slice too.
    router : str or int, optional
        How router rows are made: `coppice list routers` (default: random).
    router_rows : path, optional
        Safetensors file with the rows of every router, such as from `coppice cluster`.
    trunk : str or int, optional
        With several models, where tensors other than experts come from: average (default)
        or first.
    dense_average : bool, default False
        Average the experts of MODEL into a dense model.
    lossy : bool, default False
        Convert even if the family of OUT has no place for some tensors or settings; they
        are left out.
    seed : int, optional
        Random seed; same seed, same bytes (default: 0).
    max_shard_bytes : str or int, default '5GB'
        Maximum size of a file of weights, such as 5GB.
    threads : int, optional
        CPU threads (default: all cores); the bytes written do not depend on it.
    resume : bool, default False
        Continue a killed run; if this run is stopped too, keep its finished work.
    part : str or int, optional
        Do one part of the work, such as 2/4; several processes or machines fill OUT
        together, and each may be restarted; auto: one part for each process that torchrun,
        srun or mpirun has started.
    dry_run : bool, default False
        Print what would be written; write nothing.
    config : path, optional
        TOML file of options; keywords override it.

    Returns
    -------
    Conversion
        Sizes before and after, what the new family cannot express, and whether the new
        model computes the same function.

    Raises
    ------
    coppice.Error
        One of its classes in `coppice.errors`. The message says what was found, what was
        wanted and what to do, with options spelled as on the command line.
    KeyboardInterrupt
        After Ctrl-C, when the work has stopped cleanly.

    Notes
    -----
    Memory and `out` are as in `expand`.
    """
    ...

def cost(
    model: _Path,
    *,
    progress: _Progress = True,
    experts: str | int | None = None,
    top_k: int | None = None,
    granularity: int | None = None,
    family_file: _Path | None = None,
    tokens_before: float | None = None,
    tokens_after: float | None = None,
    loss_gap: float | None = None,
    target_closure: float | None = 0.9,
    data_parallel: int | None = 1,
    expert_parallel: int | None = 1,
    expert_parallel_after: int | None = None,
    zero1: bool = False,
    recompute: bool = False,
    weight_dtype: str | int | None = 'bf16',
    gradient_dtype: str | int | None = 'f32',
    master_dtype: str | int | None = 'f32',
    moment_dtype: str | int | None = 'f32',
    step_time_before: float | None = None,
    step_time_after: float | None = None,
    batch_tokens: float | None = 4194304.0,
    sequence_length: float | None = 4096.0,
    device: str | int | None = 'h100',
    device_flops: float | None = None,
    device_memory_rate: float | None = None,
    device_network_rate: float | None = None,
    cluster: str | int | None = None,
    gpus: int | Sequence[int] | None = None,
    gpu_tokens: int | None = None,
    micro_batch: int | None = None,
    once_per_rank: bool = False,
    utilisation: float | None = 0.468,
    measure: bool = False,
    measure_experts: int | Sequence[int] | None = None,
    measure_tokens: int | None = None,
    measure_steps: int | None = None,
    measure_dtype: str | int | None = None,
    measure_device: str | int | None = None,
    threads: int | None = None,
    fit: _Path | Sequence[_Path] | None = None,
    config: _Path | None = None,
) -> Result:
    """Estimate what an expansion of `model` would cost and gain: the command ``plan``.

    Its name here is `cost`, because `plan` makes the growth plan of a model.

    Parameters
    ----------
    model : path
        Model directory in Hugging Face format (never changed).
    progress : bool or callable, default True
        True: a bar of tqdm where it is installed. A function gets a `ProgressState` now and
        then, in this thread. False: nothing.
    experts : str or int, optional
        Number of experts afterwards: 2x (default), 1.5x or 48; for a dense model: a number
        (default: 8).
    top_k : int, optional
        For a dense model: experts per token afterwards (default: 2).
    granularity : int, optional
        For a dense model: width of the dense layer divided by the width of an expert
        (default: 1).
    family_file : path, optional
        TOML file that describes the model's family, if coppice does not know it; auto:
        infer it (`inspect --infer`).
    tokens_before : float, optional
        Tokens of training with E experts before the expansion (tau).
    tokens_after : float, optional
        Tokens of training with N experts after the expansion.
    loss_gap : float, optional
        L_E - L_N in nats, if you know it; gap closure is then given in nats too.
    target_closure : float, default 0.9
        Share of the gap to close, for the advice when to expand.
    data_parallel : int, default 1
        Number of data-parallel ranks.
    expert_parallel : int, default 1
        Number of those ranks that share one set of experts; must divide --data-parallel or
        --gpus.
    expert_parallel_after : int, optional
        The same for N experts (default: as --expert-parallel).
    zero1 : bool, default False
        Shard the optimizer state over the ranks (ZeRO-1).
    recompute : bool, default False
        The backward pass computes every layer again (activation recomputation).
    weight_dtype : str or int, default 'bf16'
        Dtype of the weights in training: bf16, f16 or f32.
    gradient_dtype : str or int, default 'f32'
        Dtype of accumulated gradients.
    master_dtype : str or int, default 'f32'
        Dtype of master weights; none if the optimizer has none.
    moment_dtype : str or int, default 'f32'
        Dtype of Adam's two moments.
    step_time_before : float, optional
        Measured seconds per step with E experts.
    step_time_after : float, optional
        Measured seconds per step with N experts on the same batch.
    batch_tokens : float, default 4194304.0
        Tokens per optimizer step, over all ranks.
    sequence_length : float, default 4096.0
        Tokens per sequence.
    device : str or int, default 'h100'
        GPU of the step-time model: a100, h100, h200 or b200.
    device_flops : float, optional
        bf16 FLOP/s of another device than these.
    device_memory_rate : float, optional
        Memory bandwidth of that device in bytes per second.
    device_network_rate : float, optional
        Network bandwidth of that device in bytes per second, one direction.
    cluster : str or int, optional
        Simulate steps on this cluster: nvlink4-ndr, nvlink5-ndr, nvlink3-hdr, nvlink3-efa,
        nvlink4-100g, ethernet-100g, ethernet-25g, ethernet-10g, or a file of measured
        points (docs/scaling.md).
    gpus : int or list of int, optional
        Numbers of GPUs to simulate; the first takes the place of --data-parallel in the
        rest of the output.
    gpu_tokens : int, optional
        Tokens of one GPU per optimizer step, in simulated steps; takes the place of
        --batch-tokens.
    micro_batch : int, optional
        Sequences of one GPU per forward pass, in simulated steps (default: 1).
    once_per_rank : bool, default False
        In simulated steps, send a token once to a GPU that has several of its experts.
    utilisation : float, default 0.468
        Share of the peak FLOP/s that matrix products reach.
    measure : bool, default False
        Time real training steps on this machine, with a random model of this shape.
    measure_experts : int or list of int, optional
        Numbers of experts to time (default: E and N); if N is not among them, its time is
        predicted.
    measure_tokens : int, optional
        Tokens per timed step (default: 2048).
    measure_steps : int, optional
        Timed steps in each of four rounds, after 2 that do not count (default: 5).
    measure_dtype : str or int, optional
        Dtype of timed steps: bf16 (default) or f32.
    measure_device : str or int, optional
        Device of timed steps: auto (a GPU if there is one; default), cpu, cuda or cuda:N.
    threads : int, optional
        CPU threads of timed steps (default: all cores).
    fit : path or list of path, optional
        Directories of your own runs; their losses and step times replace published
        constants.
    config : path, optional
        TOML file of options; keywords override it.

    Returns
    -------
    Result
        `details` has the keys of ``coppice plan --json``.

    Raises
    ------
    coppice.Error
        One of its classes in `coppice.errors`. The message says what was found, what was
        wanted and what to do, with options spelled as on the command line.
    KeyboardInterrupt
        After Ctrl-C, when the work has stopped cleanly.

    Notes
    -----
    Reads headers alone. `measure`, and what depends on it, needs the full program; this
    package has the core.
    """
    ...

def expand(
    model: _Path,
    out: _Path,
    *,
    progress: _Progress = True,
    experts: str | int | None = None,
    recipe: str | int | None = None,
    select: str | int | None = None,
    temperature: float | None = None,
    metric: str | int | None = None,
    layer_selection: str | int | None = None,
    scores: _Path | None = None,
    max_duplicates: int | None = None,
    expert_init: str | int | None = None,
    router_init: str | int | None = None,
    balance_bias: str | int | None = None,
    optimizer_state: str | int | None = None,
    order: str | int | None = None,
    allow_regroup: bool = False,
    top_k: str | int | None = None,
    split: int | None = None,
    family_file: _Path | None = None,
    dequantize: bool = False,
    seed: int | None = None,
    plan: _Path | None = None,
    undo: bool = False,
    max_shard_bytes: str | int | None = '5GB',
    threads: int | None = None,
    resume: bool = False,
    part: str | int | None = None,
    dry_run: bool = False,
    config: _Path | None = None,
) -> Expansion:
    """Write `model` with more experts in every MoE layer to the directory `out`.

    Parameters
    ----------
    model : path
        Model directory in Hugging Face format (never changed).
    out : path
        Directory of the expanded model; must not exist.
    progress : bool or callable, default True
        True: a bar of tqdm where it is installed. A function gets a `ProgressState` now and
        then, in this thread. False: nothing.
    experts : str or int, optional
        Number of experts afterwards: 2x, 1.5x or 48 (default: 2x).
    recipe : str or int, optional
        A named set of options (`coppice list recipes`); options given here override it.
    select : str or int, optional
        Rule that chooses the experts to copy: `coppice list selections` (default: waterfill
        with scores, else uniform).
    temperature : float, optional
        Temperature of weighted_sampling (default: 1).
    metric : str or int, optional
        Metric of the scores to rank experts by: `coppice list metrics` (default:
        gradient_squared).
    layer_selection : str or int, optional
        How the scores of an expert's two linear layers are combined: `coppice list
        layer-selections` (default: both_average).
    scores : path, optional
        scores.json that `coppice score` wrote for this model.
    max_duplicates : int, optional
        Maximum number of new copies of one expert (default: set by the rule).
    expert_init : str or int, optional
        How the weights of a new expert are made from its parent's: `coppice list
        expert-init`; NAME or NAME:key=value (default: copy).
    router_init : str or int, optional
        How the router row of a new expert is made from its parent's: `coppice list
        router-init` (default: bias_only where there is a bias, else perturb_new_only).
    balance_bias : str or int, optional
        Selection bias of a new expert: its parent's (copy, the default) or 0 (zero).
    optimizer_state : str or int, optional
        How Adam's moments in trainer/ are made from the parent's: `coppice list
        optimizer-state` (default: copy).
    order : str or int, optional
        Where new experts are placed: append (after all others) or siblings (after their
        parent) (default: siblings for grouped routers, else append).
    allow_regroup : bool, default False
        Allow an expansion that moves experts to other router groups.
    top_k : str or int, optional
        Keep (default), or scale: multiply top-K by the same factor as the number of
        experts.
    split : int, optional
        Cut each expert into N narrower ones instead of copying; same function and work.
    family_file : path, optional
        TOML file that describes the model's family, if coppice does not know it; auto:
        infer it (`inspect --infer`).
    dequantize : bool, default False
        Write a quantised model in bf16, so that methods can change values; formats: fp8,
        mxfp4, compressed-tensors, modelopt.
    seed : int, optional
        Random seed; same seed, same bytes (default: 0).
    plan : path, optional
        Carry out the plan in this TOML file, which --dry-run printed and you may have
        edited.
    undo : bool, default False
        Undo the newest expansion of MODEL: keep only the original experts.
    max_shard_bytes : str or int, default '5GB'
        Maximum size of a file of weights, such as 5GB.
    threads : int, optional
        CPU threads (default: all cores); the bytes written do not depend on it.
    resume : bool, default False
        Continue a killed run; if this run is stopped too, keep its finished work.
    part : str or int, optional
        Do one part of the work, such as 2/4; several processes or machines fill OUT
        together, and each may be restarted; auto: one part for each process that torchrun,
        srun or mpirun has started.
    dry_run : bool, default False
        Print the plan as TOML that --plan reads; write nothing.
    config : path, optional
        TOML file of options; keywords override it.

    Returns
    -------
    Expansion
        Sizes before and after, and whether the new model computes the same function.

    Raises
    ------
    coppice.Error
        One of its classes in `coppice.errors`. The message says what was found, what was
        wanted and what to do, with options spelled as on the command line.
    KeyboardInterrupt
        After Ctrl-C, when the work has stopped cleanly.

    Notes
    -----
    Memory does not grow with the model: 4 MiB for each thread, or one matrix of an expert
    for each thread with methods that need it whole. The bytes depend on nothing but
    the model, the options and the seed. `out` appears when it is complete: after an error
    it does not exist, and with ``resume=True`` the work that is done is kept beside it.
    """
    ...

@overload
def inspect(
    model: _Path,
    *,
    progress: _Progress = True,
    experts: bool = False,
    infer: Literal[False] = False,
    write_family: _Path | None = None,
    family_file: _Path | None = None,
    config: _Path | None = None,
) -> Inspection:
    """Describe a model: family, experts, routing, parameters, bytes, lineage.

    Parameters
    ----------
    model : path
        Model directory in Hugging Face format (never changed).
    progress : bool or callable, default True
        True: a bar of tqdm where it is installed. A function gets a `ProgressState` now and
        then, in this thread. False: nothing.
    experts : bool, default False
        Also print the L2 norm of each expert and of its router row (reads all of them).
    infer : bool, default False
        Infer the family from names and shapes, and print what was found by which rule.
    write_family : path, optional
        With --infer: write the family to this TOML file, to read, mend and give to
        --family-file.
    family_file : path, optional
        TOML file that describes the model's family, if coppice does not know it; auto:
        infer it (`inspect --infer`).
    config : path, optional
        TOML file of options; keywords override it.

    Returns
    -------
    Inspection or Inference
        `Inference` with ``infer=True``.

    Raises
    ------
    coppice.Error
        One of its classes in `coppice.errors`. The message says what was found, what was
        wanted and what to do, with options spelled as on the command line.
    KeyboardInterrupt
        After Ctrl-C, when the work has stopped cleanly.

    Notes
    -----
    Reads the headers of the files alone; with ``experts=True`` all experts, one matrix for
    each thread.
    """
    ...

@overload
def inspect(
    model: _Path,
    *,
    progress: _Progress = True,
    experts: bool = False,
    infer: Literal[True],
    write_family: _Path | None = None,
    family_file: _Path | None = None,
    config: _Path | None = None,
) -> Inference:
    """Describe a model: family, experts, routing, parameters, bytes, lineage.

    Parameters
    ----------
    model : path
        Model directory in Hugging Face format (never changed).
    progress : bool or callable, default True
        True: a bar of tqdm where it is installed. A function gets a `ProgressState` now and
        then, in this thread. False: nothing.
    experts : bool, default False
        Also print the L2 norm of each expert and of its router row (reads all of them).
    infer : bool, default False
        Infer the family from names and shapes, and print what was found by which rule.
    write_family : path, optional
        With --infer: write the family to this TOML file, to read, mend and give to
        --family-file.
    family_file : path, optional
        TOML file that describes the model's family, if coppice does not know it; auto:
        infer it (`inspect --infer`).
    config : path, optional
        TOML file of options; keywords override it.

    Returns
    -------
    Inspection or Inference
        `Inference` with ``infer=True``.

    Raises
    ------
    coppice.Error
        One of its classes in `coppice.errors`. The message says what was found, what was
        wanted and what to do, with options spelled as on the command line.
    KeyboardInterrupt
        After Ctrl-C, when the work has stopped cleanly.

    Notes
    -----
    Reads the headers of the files alone; with ``experts=True`` all experts, one matrix for
    each thread.
    """
    ...

def verify(
    before: _Path | Sequence[_Path],
    after: _Path,
    *,
    check: bool = True,
    progress: _Progress = True,
    function: _Path | None = None,
    max_tokens: int | None = None,
    sequence_length: int | None = None,
    device: str | int | None = None,
    max_memory: str | int | None = None,
    threads: int | None = None,
    family_file: _Path | None = None,
    config: _Path | None = None,
) -> Verification:
    """Check every tensor of an expanded or converted model against the model before it.

    Parameters
    ----------
    before : path or list of path
        Model directory that was expanded or converted; several if one conversion used
        several.
    after : path
        Model directory that was written.
    check : bool, default True
        Raise `CheckFailedError` if the check does not hold. False: only say so in the result.
    progress : bool or callable, default True
        True: a bar of tqdm where it is installed. A function gets a `ProgressState` now and
        then, in this thread. False: nothing.
    function : path, optional
        Run both models on this token file (prefix of a .bin/.idx pair) and compare losses
        and logits.
    max_tokens : int, optional
        With --function: number of tokens, from the start of the file (default: 16384; 0:
        all).
    sequence_length : int, optional
        With --function: tokens per window (default: 256).
    device : str or int, optional
        With --function: device to compute on: auto (a GPU if there is one; default), cpu,
        cuda or cuda:N.
    max_memory : str or int, optional
        With --function: most memory for both models, such as 8GiB (default: half of the
        device's).
    threads : int, optional
        CPU threads (default: all cores).
    family_file : path, optional
        TOML file that describes the model's family, if coppice does not know it; auto:
        infer it (`inspect --infer`).
    config : path, optional
        TOML file of options; keywords override it.

    Returns
    -------
    Verification
        Whether they fit each other, and every problem.

    Raises
    ------
    coppice.Error
        One of its classes in `coppice.errors`. The message says what was found, what was
        wanted and what to do, with options spelled as on the command line.
    KeyboardInterrupt
        After Ctrl-C, when the work has stopped cleanly.

    Notes
    -----
    Memory: 4 MiB for each thread, or one matrix for each thread. `function`, and what
    depends on it, needs the full program; this package has the core.
    """
    ...
