"""State of the whole process is rare: each piece has an owner and a reason, listed here.

What counts: module-level containers that the program changes, ``global``, dictionaries and counters
made empty, caches of functions, attributes set by name, and methods replaced on an object.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dq", "launcher", "slurm", "website")

# What may be there, and why.
ALLOWED = {
    # Owned by the process group: it ends with the group.
    ("dq/dist/group/presence.py", "_presences"): "one socket of a rank in each group",
    ("dq/dist/rendezvous/sequence.py", "_sequences"): "the number of meetings of each group",
    ("dq/dist/exchange/collectives.py", "global _issued"): "what tests count, for each process",
    # torch.fx and autograd hand over nothing but the layer or the tensor.
    ("dq/quant/quantizers/layer_types.py", "_plain_layers"): "declared by type, asked by layer",
    ("dq/quant/quantizers/layer_types.py", "_padding_layers"): "declared by type, asked by layer",
    ("dq/quant/quantizers/learner.py", "_learners"): "torch's hooks of optimizers get no model",
    ("dq/quant/kernels/recompute.py", "_recomputations"): "an entry ends with its tensor",
    # What a user registers by name, once.
    ("dq/quant/recipes/registration.py", "OBSERVERS"): "names that configs and checkpoints say",
    ("dq/quant/recipes/registration.py", "TARGETS"): "names that configs and checkpoints say",
    ("dq/quant/recipes/registration.py", "PRESETS"): "names that configs and checkpoints say",
    # Answers that cannot change while the process runs.
    ("dq/detector/model/operators/ensure.py", "cache ensure_operators"): "patches mmcv once",
    ("dq/dist/files/safe_globals.py", "cache numpy_globals"): "names in the installed numpy",
    ("dq/dist/watch/signals.py", "cache _restore_signals_in_forks"): "registered once",
    ("dq/native.py", "cache _library"): "a compiled library is loaded once",
    ("dq/tracking/pictures/lettering.py", "cache font"): "a file is read once for each size",
    ("dq/tracking/pictures/lettering.py", "cache _has"): "which characters the font has",
    ("dq/quant/kernels/native.py", "cache has_gpu_kernels"): "whether Triton is installed",
    ("dq/quant/kernels/table.py", "cache _integers"): "a constant tensor for each format",
    ("dq/quant/kernels/table.py", "cache _enabled"): "whether the kernels compile",
    ("dq/quant/observers/histogram.py", "cache bin_edges"): "a constant tensor for each device",
    ("dq/quant/quantizers/half_precision.py", "cache on_the_grid"): "one wrapper a function",
    ("dq/quant/verify/signal_stack.py", "cache _set_stack"): "the C function",
    # Places where Python, torch or mmcv leave no other way; each says so beside it.
    ("dq/dist/errors/notes.py", "setattr"): "exceptions take no weak references",
    ("dq/detector/removed_names.py", "setattr"): "names that numpy has removed",
    ("dq/quant/graph/trace.py", "setattr"): "completes a class below its definition",
    ("dq/quant/graph/trace.py", "setattr linecache.cache"): "lines of a graph in a traceback",
    ("dq/quant/training/distillation.py", "setattr"): "a frozen dataclass completes itself",
    ("dq/tracking/record/settings.py", "setattr"): "a frozen dataclass completes itself",
    ("dq/quant/training/schedule.py", "setattr"): "a frozen dataclass completes itself",
    ("dq/detector/instance_methods.py", "setattr vars"): "the one place that replaces methods",
    (
        "dq/detector/search/measured_images.py",
        "setattr",
    ): "the lists of a data set that has no subsets",
    ("dq/detector/model/operators/replace.py", "setattr function.forward"): "mmcv's operators",
    ("dq/detector/model/operators/replace.py", "setattr function.backward"): "mmcv's operators",
    ("dq/detector/step/rank_state.py", "setattr __dict__"): "restores the modules of a rank",
    ("dq/detector/loading/training_loader.py", "setattr __dict__"): "a loader's own batch size",
    ("dq/dist/norm/sync_batch_norm.py", "setattr __dict__"): "undoes the conversion of a layer",
    ("dq/quant/graph/functions.py", "setattr __dict__"): "no child module of itself",
    ("dq/quant/graph/trace.py", "setattr __dict__"): "no child module of itself",
    ("dq/quant/graph/trace.py", "setattr vars"): "copies and files of a graph",
    ("dq/detector/config/config_file.py", "setattr sys.path"): "puts back what mmcv left",
    ("dq/detector/model/mended_heads.py", "setattr RepPointsHead.get_points"): "a bug of mmdet",
    ("dq/detector/model/mended_heads.py", "setattr fcn_mask_head._do_paste_mask"): "a bug of mmdet",
    ("launcher/command_line/bar.py", "setattr BARS.propagate"): "for one command, then put back",
    ("launcher/failure.py", "setattr sys.unraisablehook"): "for one command, then put back",
    ("launcher/failure.py", "setattr threading.excepthook"): "for one command, then put back",
    # Settings that libraries and child processes read from the process itself.
    ("dq/detector/config/process_settings.py", "setattr os.environ"): "threads of worker processes",
    ("dq/detector/config/process_settings.py", "setattr torch.backends.cudnn.benchmark"): "config",
    ("dq/detector/config/process_settings.py", "setattr torch.backends.cudnn.allow_tf32"): "config",
    (
        "dq/detector/config/process_settings.py",
        "setattr torch.backends.cuda.matmul.allow_tf32",
    ): "config",
    (
        "dq/detector/config/process_settings.py",
        "setattr torch.backends.cudnn.deterministic",
    ): "config",
    ("dq/tracking/wandb_copy/mirror.py", "setattr os.environ"): "folders of the wandb package",
    ("launcher/cli.py", "setattr os.environ"): "torch's C++ log",
    ("launcher/coverage/processes.py", "setattr os.environ"): "a process that is to be no rank",
    ("slurm/placeless.py", "setattr os.environ"): "without a place among ranks, then put back",
    ("slurm/task.py", "setattr os.environ"): "the rank's place, for the command it becomes",
    ("slurm/task.py", "setattr sys.argv"): "the command line of the command it becomes",
    ("launcher/session.py", "setattr mmcv_logging.logger_initialized"): "mmcv's own loggers",
    ("website/hook.py", "setattr sys.path"): "mkdocs imports it with its own folder first",
}

CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKERS = {"list", "dict", "set", "defaultdict", "deque", "OrderedDict", "Counter", "count"}
MAKERS |= {"WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "WeakTensorKeyDictionary"}
MAKERS |= {"local", "ContextVar", "iter", "cycle"}
CHANGING = {"add", "append", "extend", "insert", "update", "setdefault", "pop", "popitem"}
METHODS = {"forward", "backward"}
CHANGING |= {"clear", "remove", "discard", "appendleft", "__setitem__"}


def found_in(text: str) -> Iterator[str]:
    """Yield what a module keeps for the whole process or sets on objects of others."""
    tree = ast.parse(text)
    of_module = _names(tree)
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and _is_made_empty(node.value):
            yield from _bound(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from (f"global {name}" for name in node.names)
        elif isinstance(node, ast.FunctionDef):
            if any("cache" in ast.unparse(decorator) for decorator in node.decorator_list):
                yield f"cache {node.name}"
        elif isinstance(node, ast.Call):
            yield from _of_call(node, of_module)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.Delete):
            single = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            for target in single:
                yield from _of_target(target, of_module)


def _names(tree: ast.Module) -> set[str]:
    """Return what names of the module stand for one object of the whole process."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            found |= set(_bound(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found - {"annotations"}


def _bound(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _is_made_empty(value: ast.expr | None) -> bool:
    if isinstance(value, ast.List | ast.Set):
        return not value.elts
    if isinstance(value, ast.Dict):
        return not value.keys
    made = ast.unparse(value.func).rpartition(".")[2] if isinstance(value, ast.Call) else ""
    return made in MAKERS


def _owner(node: ast.expr) -> str:
    """Return the innermost name of ``a.b[c].d``."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _of_call(node: ast.Call, of_module: set[str]) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called in ("setattr", "object.__setattr__"):
        yield "setattr"
    if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        changed = node.func.value
        yield from _patched(changed)
        if isinstance(changed, ast.Name) and changed.id in of_module:
            yield changed.id
        elif isinstance(changed, ast.Attribute) and _owner(changed) in of_module:
            yield f"setattr {ast.unparse(changed)}"


def _of_target(target: ast.expr, of_module: set[str]) -> Iterator[str]:
    if isinstance(target, ast.Subscript):
        yield from _patched(target.value)
        if isinstance(target.value, ast.Name) and target.value.id in of_module:
            yield target.value.id
        elif isinstance(target.value, ast.Attribute) and _owner(target) in of_module:
            yield f"setattr {ast.unparse(target.value)}"
        return
    is_method = isinstance(target, ast.Attribute) and target.attr in METHODS
    if is_method or (isinstance(target, ast.Attribute) and _owner(target) in of_module):
        yield f"setattr {ast.unparse(target)}"


def _patched(changed: ast.expr) -> Iterator[str]:
    """Yield the dictionary of an object that is changed past its class."""
    if isinstance(changed, ast.Attribute) and changed.attr == "__dict__":
        yield "setattr __dict__"
    if isinstance(changed, ast.Call) and ast.unparse(changed.func) == "vars":
        yield "setattr vars"


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str]]:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    whats = {(path, what) for path in files for what in found_in(path.read_text())}
    return sorted((path.relative_to(ROOT).as_posix(), what) for path, what in whats)


def test_state_of_the_process_has_an_owner_and_a_reason(found: list[tuple[str, str]]) -> None:
    assert [each for each in found if each not in ALLOWED] == []


def test_no_reason_is_left_over(found: list[tuple[str, str]]) -> None:
    assert sorted(ALLOWED) == [each for each in found if each in ALLOWED]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("seen = set()\n", "seen"),
        ("_by_node: dict[str, int] = {}\n", "_by_node"),
        ("numbers = itertools.count()\n", "numbers"),
        ("KINDS = {'a': 1}\ndef f(b):\n    KINDS[b] = 2\n", "KINDS"),
        ("from a import KINDS\ndef f(b):\n    KINDS.update(b)\n", "KINDS"),
        ("import a\ndef f(b):\n    a.b = 2\n", "setattr a.b"),
        ("def f():\n    global n\n    n += 1\n", "global n"),
        ("@functools.cache\ndef f():\n    return 1\n", "cache f"),
        ("def f(x):\n    setattr(x, 'a', 1)\n", "setattr"),
        ("def f(x):\n    x.__dict__['a'] = 1\n", "setattr __dict__"),
        ("def f(x):\n    vars(x).pop('a')\n", "setattr vars"),
        ("def f(x, y):\n    x.forward = y\n", "setattr x.forward"),
    ],
)
def test_each_kind_of_state_is_found(text: str, what: str) -> None:
    assert list(found_in(text)) == [what]


def test_constants_and_locals_are_none() -> None:
    text = (
        "KINDS = {'a': 1}\ndef f(self):\n    found = []\n    found.append(KINDS)\n    self.x = 1\n"
    )
    assert list(found_in(text)) == []
