"""What a handler that was written for Ryax expects of the process that it is called in (docs/ryax.md).

The worker loads this for such actions, beside which it works as for every other.
"""

import os
import sys
import types

NAMES = ("ryax_wrapper", "ryax_execution", "ryax_execution.ryax_source_protocol")
SCRIPT = "custom_script"
# So large an input is not copied to where a handler may write beside it, or over it, but linked.
COPIED_BYTES_MAX = 16 << 20
# An output in this folder keeps the name that its handler gave it.
NAMED = ".named"
# Where a script says what it has made.
EXPORTS = 'trap \'code=$?; env -0 > "$ATOLL_EXPORTS"; exit $code\' EXIT\n'


class Adapter:
    """Calls a handler with what Ryax would give it, and gives what it returns as outputs of a step."""

    def __init__(self, params, place, fault, codes):
        self.action = params["action"]
        self.folders = params["folders"]
        self.place = place
        self.inputs = params["ryax"]["inputs"]
        self.outputs = params["ryax"]["outputs"]
        self.takes_script = params["ryax"]["script"]
        self.fault = fault
        self.raised, self.invalid, self.missing = codes
        self.links = []
        # What stays in a /tmp that is this process's own, and that nobody else empties.
        self.kept = params["ryax"].get("kept")
        self.is_used = True
        provide_modules(self.action)

    def enter(self):
        """Shows what is in the action's folder in the work directory, as if that were the folder itself."""
        if self.kept and self.is_used:
            empty("/tmp", self.kept)
            self.is_used = False
        for name in os.listdir(self.action):
            if not os.path.lexists(name):
                os.symlink(os.path.join(self.action, name), name)
                self.links.append(os.path.join(self.folders["work"], name))

    def leave(self):
        for link in self.links:
            if os.path.islink(link):
                os.unlink(link)
        self.links = []

    def __enter__(self):
        self.enter()
        self.is_used = True

    def __exit__(self, *_error):
        self.leave()

    def wrap(self, handler):
        def call(values):
            with self:
                script = values.pop(SCRIPT, None) if self.takes_script else None
                given = {name: self.given(name, value) for name, value in values.items()}
                returned = self.run(script, given) if script else self.handle(handler, given)
                return self.answer(self.merged(returned))

        return call

    def wrap_source(self, run):
        def call(source, values):
            import asyncio

            with self:
                given = {name: self.given(name, value) for name, value in values.items()}
                self.calling(lambda: asyncio.run(run(Service(self, source), given)))

        return call

    def handle(self, handler, given):
        return self.calling(lambda: handler(given))

    def calling(self, call):
        try:
            return call()
        except Exception as error:
            if not any(known.__name__ == "RyaxException" for known in type(error).__mro__):
                raise
            import traceback

            traceback.print_exception(type(error), error, error.__traceback__.tb_next)
            message, code = getattr(error, "message", error), getattr(error, "code", None)
            raise self.fault(self.raised, "RyaxException: %s (code %s)" % (message, code)) from None

    def given(self, name, value):
        """An input as a handler of Ryax gets it."""
        kind = self.inputs[name]["type"] if name in self.inputs else "any"
        if value is None:
            return None
        if kind == "float" and isinstance(value, int):
            return float(value)
        if kind == "integer" and isinstance(value, float) and value.is_integer():
            return int(value)
        if kind in ("string", "enum") and not isinstance(value, str):
            return text(value)
        if kind == "bytes":
            return value.encode()
        if kind == "file":
            return self.brought(name, value)
        return value

    def brought(self, name, path):
        """A file in a folder that a handler may write to: some write beside what they read."""
        import shutil

        folder = os.path.join(self.folders["temporary"], name)
        os.mkdir(folder)
        place = os.path.join(folder, os.path.basename(path))
        if os.path.getsize(path) > COPIED_BYTES_MAX:
            os.symlink(path, place)
        else:
            shutil.copy(path, place)
            os.chmod(place, os.stat(place).st_mode | 0o200)
        return place

    def merged(self, returned):
        """One result, also of several: then each output is the list of theirs."""
        if not isinstance(returned, (list, tuple)):
            return returned
        for index, result in enumerate(returned):
            if not isinstance(result, dict):
                self.refuse("the handler returned %s at [%d], and a dict of outputs is asked for" % (named(result), index))
        stored = [name for name, output in self.outputs.items() if output["type"] in ("file", "directory")]
        if stored and len(returned) == 1:
            return returned[0]
        if stored:
            count = len(returned)
            self.refuse("the handler returned %d results, and the output %s of each is a file or a directory: "
                        "return one result with a directory of all of them" % (count, stored[0]))
        lists = {}
        for name, output in self.outputs.items():
            lists[name] = Several(result.get(name) for result in returned)
            if not output["optional"] and None in lists[name]:
                index = lists[name].index(None)
                raise self.fault(self.missing, "the output %s is missing at [%d]" % (name, index))
        return lists

    def answer(self, returned):
        """The outputs that are values, while all others stand where they are looked for."""
        if returned is None:
            returned = {}
        if not isinstance(returned, dict):
            self.refuse("the handler returned %s, and a dict of outputs is asked for" % named(returned))
        outputs, moved = {}, {}
        for name, declared in self.outputs.items():
            value = returned.get(name)
            if value is None:
                if not declared["optional"]:
                    raise self.fault(self.missing, "the output %s is missing" % name)
            elif isinstance(value, Several):
                outputs[name] = [None if one is None else self.fitting(name, declared, one) for one in value]
            elif declared["type"] in ("file", "directory"):
                path, place = whole(value), self.place_of(name, value)
                if path in moved:
                    duplicate(moved[path], place)
                else:
                    self.place(name, declared["type"], value, place)
                    moved[path] = place
            else:
                value = self.fitting(name, declared, value)
                if isinstance(value, str) and is_json(value):
                    self.write(name, value)
                else:
                    outputs[name] = value
        return outputs

    def place_of(self, name, value):
        """Where a file or directory is put so that it keeps its name."""
        folder = os.path.join(self.folders["outputs"], NAMED, name)
        os.makedirs(folder)
        return os.path.join(folder, os.path.basename(whole(value) or "") or name)

    def write(self, name, value):
        """A text that could be taken for something else when it is read stands in quotes."""
        import json

        with open(os.path.join(self.folders["outputs"], name), "w", encoding="utf-8") as output:
            json.dump(value, output, ensure_ascii=False)

    def fitting(self, name, declared, value):
        kind = declared["type"]
        try:
            fits = CONVERSIONS[kind](value)
        except (AttributeError, OverflowError, TypeError, UnicodeError, ValueError):
            fits = None
        if kind == "enum" and declared["values"] and fits not in declared["values"]:
            fits = None
        if fits is None:
            values = ": " + ", ".join(declared["values"]) if declared.get("values") else ""
            self.refuse("the output %s is %s, and %s is declared%s" % (name, named(value), kind, values))
        return fits

    def refuse(self, message):
        raise self.fault(self.invalid, message)

    def run(self, script, given):
        """Runs a script in place of the handler: inputs are variables, and so are outputs, which it exports."""
        import subprocess

        if "RYAX_ACTION_IMG" in script and "RYAX_ACTION_IMG" not in os.environ:
            self.refuse("the script uses $RYAX_ACTION_IMG, and there is no image of the action here")
        exports = os.path.join(self.folders["temporary"], ".exports")
        environment = dict(os.environ, ATOLL_EXPORTS=exports)
        environment.update((name, text(value)) for name, value in given.items() if value is not None)
        ended = subprocess.run(["bash", "-c", EXPORTS + script], env=environment, stdin=subprocess.DEVNULL)
        if ended.returncode:
            raise self.fault(self.raised, "the script has ended with code %d" % ended.returncode)
        with open(exports, "rb") as listing:
            variables = (variable.partition(b"=") for variable in listing.read().split(b"\0"))
            found = {os.fsdecode(name): os.fsdecode(value) for name, _, value in variables}
        os.unlink(exports)
        return {name: found[name] for name in self.outputs if name in found}


class Service:
    """What the function of a source is given (RyaxSourceProtocol)."""

    def __init__(self, adapter, source):
        self.adapter = adapter
        self.source = source

    async def create_run(self, data, running_time=0.001, status=None):
        """Starts a run with these outputs. Returns when that is certain."""
        if getattr(status, "name", "DONE") == "ERROR":
            return await self.create_run_error()
        if not isinstance(data, dict):
            self.adapter.refuse("create_run was given %s, and a dict of outputs is asked for" % named(data))
        record = {}
        for name, declared in self.adapter.outputs.items():
            value = data.get(name)
            if value is not None:
                record[name] = self.adapter.fitting(name, declared, value)
            elif not declared["optional"]:
                raise self.adapter.fault(self.adapter.missing, "the output %s is missing" % name)
        self.source.emit(record)

    async def create_run_error(self):
        print("the source says that it could not start a run", file=sys.stderr, flush=True)

    def get_output_definitions(self):
        return {name: dict(declared, name=name) for name, declared in self.adapter.outputs.items()}


def empty(folder, kept):
    """Removes what is in a folder, but for these folders and the way to them."""
    import shutil

    for entry in os.scandir(folder):
        if entry.path in kept:
            continue
        if any(path.startswith(entry.path + "/") for path in kept):
            empty(entry.path, kept)
        elif entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


class Several(list):
    """The values of one output in several results."""


def provide_modules(folder):
    """What code for Ryax may import of it, unless the action brings it along."""
    import abc
    import enum

    if any(os.path.exists(os.path.join(folder, name + end)) for name in NAMES[:2] for end in ("", ".py")):
        return
    status = enum.Enum("RyaxRunStatus", {"DONE": 1, "ERROR": 2}, module=NAMES[2])

    class RyaxSourceProtocol(abc.ABC):
        @abc.abstractmethod
        async def create_run(self, data, running_time=0.001, status=status.DONE):
            """Starts a run with these outputs."""

        async def create_run_error(self):
            await self.create_run({}, status=status.ERROR)

        @abc.abstractmethod
        def get_output_definitions(self):
            """What is known of the outputs."""

    for name in NAMES:
        module = types.ModuleType(name)
        module.RyaxSourceProtocol, module.RyaxRunStatus = RyaxSourceProtocol, status
        sys.modules[name] = module
    sys.modules[NAMES[1]].__path__ = []
    sys.modules[NAMES[1]].ryax_source_protocol = sys.modules[NAMES[2]]


def whole(value):
    return os.path.abspath(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else None


def duplicate(path, place):
    import shutil

    if os.path.isdir(path):
        shutil.copytree(path, place, symlinks=True)
    else:
        shutil.copy(path, place)


def text(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


def to_text(value):
    if isinstance(value, (str, bool, int, float)):
        return text(value)
    raise TypeError


def to_integer(value):
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, float) and value.is_integer() or isinstance(value, str):
        value = int(value)
    number = value.__index__()
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError
    return number


def to_float(value):
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if number - number != 0:
        raise ValueError
    return number


def to_boolean(value):
    if isinstance(value, str):
        return {"true": True, "false": False}[value.lower()] if value.lower() in ("true", "false") else None
    # Those of NumPy are no others.
    return bool(value) if type(value).__name__ in ("bool", "bool_") else None


def to_rows(value):
    return list(value) if isinstance(value, (list, tuple)) else None


CONVERSIONS = {
    "string": to_text,
    "enum": to_text,
    "bytes": lambda value: value if isinstance(value, str) else bytes(value).decode(),
    "integer": to_integer,
    "float": to_float,
    "boolean": to_boolean,
    "table": to_rows,
}


def is_json(value):
    import json

    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return value.endswith(("\n", "\r"))
    return True


def named(value):
    shown = repr(value)
    return "%s %s" % (type(value).__name__, shown if len(shown) <= 60 else shown[:57] + "...")
