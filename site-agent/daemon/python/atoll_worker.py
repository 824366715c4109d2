"""Calls the handler of an action, one execution after the other, as docs/action-protocol.md has it.

An agent starts this with the numbers of two descriptors as arguments: where requests come from, and where answers go.
Needs Python 3.8 and nothing but its standard library, of which it loads little, since that is what a cold start waits for.
"""

import json
import os
import signal
import sys

PROTOCOL = 1

# Of JSON-RPC.
METHOD_NOT_FOUND = -32601
# Of the action protocol.
RAISED = -32000
NOT_LOADED = -32001
CANCELLED = -32002
INVALID_OUTPUT = -32003
MISSING_OUTPUT = -32004
OUT_OF_MEMORY = -32005

# Records that may wait for their answers.
EMITTED_AT_ONCE = 64

READ_BYTES = 1 << 16
# What a traceback does not begin with.
OWN_FILES = [__file__]
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Cancelled(BaseException):
    """Raised in a handler whose execution is to end. No `except Exception` holds it up."""


class Fault(Exception):
    """What an execution is answered with instead of a result."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code
        self.message = message


class Channel:
    """Messages of JSON, each after a header that says how long it is."""

    def __init__(self, requests, answers):
        self.requests = requests
        self.answers = answers
        self.buffer = b""

    def receive(self):
        """The next request, or nothing when there will be none."""
        while True:
            head, separator, rest = self.buffer.partition(b"\r\n\r\n")
            if separator:
                length = content_length(head)
                if len(rest) >= length:
                    self.buffer = rest[length:]
                    return json.loads(rest[:length])
            chunk = os.read(self.requests, READ_BYTES)
            if not chunk:
                return None
            self.buffer += chunk

    def has_message(self):
        """Whether something can be received without waiting for it to begin."""
        import select

        return b"\r\n\r\n" in self.buffer or bool(select.select([self.requests], [], [], 0)[0])

    def answer(self, identifier, member, content):
        self.send({"jsonrpc": "2.0", "id": identifier, member: content})

    def send(self, message):
        body = ENCODER.encode(message).encode()
        data = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        while data:
            data = data[os.write(self.answers, data) :]


def content_length(head):
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("a message without Content-Length")


class Refused(Exception):
    """A record cannot start a run; the message says why."""

    __module__ = "atoll"


class Source:
    """What the function of a source is given: it emits records, and knows how far it has come."""

    def __init__(self, worker):
        self._worker = worker
        self._last = 0
        self._waiting = set()
        self._answers = {}
        #: What went with the last record that has started a run, also one of an earlier attempt; None at first.
        self.offset = None

    def emit(self, record, offset=None, key=None, wait=True):
        """Starts a run with the values of the record, a dict. Returns when that is certain.

        What is given as the offset is `source.offset` when the source is started again. Of records with the same key
        only the first starts a run. Without wait it returns before, unless many wait already; see `flush`.
        """
        values = {}
        if not isinstance(record, dict):
            raise TypeError("a record is a dict of what the source emits, not %s" % shown(record))
        for name, declared in self._worker.outputs.items():
            value = record.get(name)
            if value is not None:
                try:
                    values[name] = fitting(value, declared, name, "")
                except Fault as fault:
                    raise TypeError(fault.message) from None
            elif not declared["optional"]:
                raise TypeError("the record has no %s" % name)
        unknown = [name for name in record if name not in self._worker.outputs]
        if unknown:
            raise TypeError("action.yaml declares no output %s" % unknown[0])
        content = {"values": values}
        if offset is not None:
            content["offset"] = offset
        if key is not None:
            content["key"] = str(key)
        while len(self._waiting) >= EMITTED_AT_ONCE:
            self._listen()
        identifier = self._ask("emit", content)
        if wait:
            self._wait(identifier)
            self._raise_refused()
        if offset is not None:
            self.offset = offset

    def flush(self):
        """Returns when all records have started their runs."""
        while self._waiting:
            self._listen()
        self._raise_refused()

    def _begin(self):
        identifier = self._ask("offset", None)
        self._wait(identifier)
        self.offset = self._answers.pop(identifier)["result"]["offset"]

    def _ask(self, method, params):
        import threading

        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a source emits from the thread that its function was called in")
        self._last += 1
        message = {"jsonrpc": "2.0", "id": self._last, "method": method}
        if params is not None:
            message["params"] = params
        # The answer may come before this returns.
        self._waiting.add(self._last)
        worker = self._worker
        worker.hears = True
        try:
            # No cancel cuts the message short.
            worker.channel.send(message)
        finally:
            worker.hears = False
        worker.interrupt(None, None)
        return self._last

    def _wait(self, identifier):
        while identifier in self._waiting:
            self._listen()

    def _listen(self):
        """Takes the next message. The handler of the signal leaves it alone meanwhile, or has taken it before."""
        worker = self._worker
        worker.hears = True
        try:
            # What came before the handler was told to leave it alone may be all that was waited for.
            if not worker.take_heard():
                worker.heard(worker.channel.receive())
        finally:
            worker.hears = False
        # The signal of what has come meanwhile was passed over.
        worker.interrupt(None, None)

    def _answered(self, message):
        identifier = message["id"]
        if identifier in self._waiting:
            self._waiting.discard(identifier)
            if "error" in message or message["result"]:
                self._answers[identifier] = message

    def _raise_refused(self):
        refused = [message["error"]["message"] for message in self._answers.values() if "error" in message]
        self._answers.clear()
        if refused:
            raise Refused(refused[0])


class Worker:
    """What was loaded, and the execution that it is called for, if there is one."""

    def __init__(self, channel):
        self.channel = channel
        self.running = None
        self.outputs = {}
        self.folders = {}
        self.call = None
        self.environment = None
        self.known = None
        self.path = None
        self.private_tmp = False
        self.kind = "processor"
        self.source = None
        self.hears = False
        self.has_heard = False
        self.missed = False

    def serve(self):
        while True:
            request = self.channel.receive()
            if request is None:
                return
            method, identifier = request.get("method"), request.get("id")
            if method == "execute":
                self.execute(identifier, request["params"])
            elif method == "initialize":
                if not self.initialize(identifier, request["params"]):
                    return
            elif method == "shutdown":
                return
            elif method is not None and identifier is not None:
                error = {"code": METHOD_NOT_FOUND, "message": "there is no method %s" % method}
                self.channel.answer(identifier, "error", error)
            # A cancel that came after the end of what it was to cancel asks for nothing more, nor does a late answer.

    def initialize(self, identifier, params):
        """Loads the handler. Whether there is one."""
        if PROTOCOL not in params["protocols"]:
            message = "this worker speaks version %d of the action protocol" % PROTOCOL
            self.channel.answer(identifier, "error", {"code": NOT_LOADED, "message": message})
            return False
        self.outputs = params["outputs"]
        self.folders = params["folders"]
        self.kind = params.get("kind", self.kind)
        self.private_tmp = same_file("/tmp", self.folders["temporary"])
        os.chdir(self.folders["work"])
        try:
            self.call = self.load_for_ryax(params) if "ryax" in params else self.load(params)
        except BaseException as error:
            fault = described(error)
            flush()
            message = "the handler %s cannot be loaded: %s" % (params["handler"], fault.message)
            self.channel.answer(identifier, "error", {"code": NOT_LOADED, "message": message})
            return False
        flush()
        self.environment = dict(os.environ)
        self.path = list(sys.path)
        self.channel.answer(identifier, "result", {"protocol": PROTOCOL})
        return True

    def load(self, params):
        """What calls the handler with a dict of inputs, and yields the outputs; that of a source is given the source before."""
        called = find(params["action"], params["handler"])
        if self.kind == "source":
            return lambda source, values: called(source, **values)
        if takes_dict(called, params["inputs"]):
            return lambda values: self.take(called(values))
        return lambda values: self.take(called(**values))

    def load_for_ryax(self, params):
        """The same for a handler that was written for Ryax."""
        module = import_file("atoll_ryax", params["ryax"]["file"])
        OWN_FILES.append(module.__file__)
        adapter = module.Adapter(params, self.place, Fault, (RAISED, INVALID_OUTPUT, MISSING_OUTPUT))
        adapter.enter()
        try:
            called = find(params["action"], params["handler"])
            return adapter.wrap_source(called) if self.kind == "source" else adapter.wrap(called)
        finally:
            adapter.leave()

    def execute(self, identifier, params):
        if params.get("logs"):
            self.open_logs()
        # The folder is another one if the last execution has left something in it.
        os.chdir(self.folders["work"])
        self.set_environment(params["environment"])
        fault = None
        try:
            self.running = identifier
            outputs = self.carry_out(params["inputs"])
            self.running = None
        except BaseException as error:
            self.running = None
            fault = described(error)
        flush()
        if fault is None:
            try:
                return self.channel.answer(identifier, "result", {"outputs": outputs})
            except (UnicodeEncodeError, ValueError, TypeError, RecursionError) as error:
                fault = Fault(INVALID_OUTPUT, "the outputs are no JSON: %s" % error)
        self.channel.answer(identifier, "error", {"code": fault.code, "message": fault.message})

    def carry_out(self, inputs):
        if self.kind != "source":
            return self.call(inputs)
        self.source = Source(self)
        try:
            self.source._begin()
            self.call(self.source, inputs)
            self.source.flush()
        finally:
            self.source = None
        return {}

    def interrupt(self, _signal, _frame):
        """Something has come while a handler runs: that it is to end, if anything, or what a source is answered."""
        while self.running is not None:
            if self.hears:
                # Whoever takes a message now looks again: a signal may come at any line.
                self.missed = True
                return
            self.missed = False
            if not self.hear_one() and not self.missed:
                return

    def hear_one(self):
        """Takes the next message, if there is one."""
        self.hears = True
        try:
            if not self.channel.has_message():
                return False
            self.has_heard = True
            self.heard(self.channel.receive())
            return True
        finally:
            self.hears = False

    def take_heard(self):
        """Whether something was heard since this was asked."""
        heard, self.has_heard = self.has_heard, False
        return heard

    def heard(self, message):
        if message is None:
            # Nobody waits for the answer any more.
            os._exit(1)
        if message.get("method") == "cancel":
            if message["params"]["id"] == self.running:
                self.running = None
                raise Cancelled()
        elif "method" not in message and self.source is not None:
            self.source._answered(message)

    def open_logs(self):
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            log = os.open(self.folders[name], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.dup2(log, descriptor)
            os.close(log)

    def set_environment(self, environment):
        """What one execution has set the next does not see."""
        if self.known != (environment.keys(), variables()):
            os.environ.clear()
            os.environ.update(self.environment)
        if sys.path != self.path:
            sys.path[:] = self.path
        os.environ.update(environment)
        self.known = (environment.keys(), variables())

    def take(self, returned):
        """The outputs as they are answered: values, while files and directories stand where they are looked for."""
        if returned is None:
            returned = {}
        if not isinstance(returned, dict):
            message = "the handler returned %s, and a dict of outputs is asked for" % shown(returned)
            raise Fault(INVALID_OUTPUT, message)
        values = {}
        for name, declared in self.outputs.items():
            value = returned.get(name)
            place = os.path.join(self.folders["outputs"], name)
            if value is None:
                if not declared["optional"] and not os.path.lexists(place):
                    raise Fault(MISSING_OUTPUT, "the output %s is missing" % name)
            elif declared["type"] in ("file", "directory"):
                self.place(name, declared["type"], value, place)
            else:
                values[name] = fitting(value, declared, name, "")
        return values

    def place(self, name, kind, value, place):
        """Puts a file or directory where the agent looks for it: moved if it is the execution's own, else copied."""
        if not isinstance(value, (str, os.PathLike)):
            message = "the output %s is %s, and the path of a %s is asked for" % (name, shown(value), kind)
            raise Fault(INVALID_OUTPUT, message)
        path = os.path.realpath(os.fspath(value))
        if not (os.path.isdir if kind == "directory" else os.path.isfile)(path):
            raise Fault(INVALID_OUTPUT, "the output %s: %s is not the path of a %s" % (name, path, kind))
        if self.private_tmp and path.startswith("/tmp/"):
            # The same folder by the name under which things can be moved out of it.
            path = self.folders["temporary"] + path[len("/tmp") :]
        if path == os.path.realpath(place):
            return
        own = [os.path.realpath(self.folders[folder]) for folder in ("work", "temporary", "outputs")]
        if any(path.startswith(folder + "/") for folder in own):
            try:
                return os.rename(path, place)
            except OSError:
                pass
        import shutil

        if kind == "directory":
            shutil.copytree(path, place, symlinks=True)
        else:
            shutil.copy(path, place)


def find(folder, handler):
    """The function that the handler names."""
    file, _, function = handler.rpartition(":")
    path = os.path.join(folder, file)
    name = os.path.splitext(os.path.basename(file))[0]
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    sys.path.insert(0, folder)
    if os.path.dirname(path) != folder:
        sys.path.insert(0, os.path.dirname(path))
    called = getattr(import_file(name, path), function, None)
    if not callable(called):
        raise Fault(NOT_LOADED, "%s has no function %s" % (file, function))
    return called


def import_file(name, path):
    import importlib.util

    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module



def takes_dict(called, inputs):
    """Whether its one parameter is all inputs together: it has the name of none of them."""
    code = getattr(called, "__code__", None)
    if code is None or hasattr(called, "__wrapped__") or hasattr(called, "__self__"):
        import inspect

        parameters = list(inspect.signature(called).parameters.values())
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return len(parameters) == 1 and parameters[0].kind in positional and parameters[0].name not in inputs
    has_more = code.co_flags & 0x0C or code.co_kwonlyargcount
    return code.co_argcount == 1 and not has_more and code.co_varnames[0] not in inputs


def fitting(value, declared, name, place):
    """The value if it is of the declared type, as JSON has it."""
    kind = declared["type"]
    if kind == "string" and isinstance(value, str):
        return value
    if kind == "integer" and isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
        return value
    if kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
        if number - number == 0:
            return number
    if kind == "boolean" and isinstance(value, bool):
        return value
    if kind == "enum" and isinstance(value, str) and value in declared["values"]:
        return value
    if kind == "list" and isinstance(value, (list, tuple)):
        of = declared["of"]
        return [fitting(item, of, name, "%s[%d]" % (place, index)) for index, item in enumerate(value)]
    if kind == "object" and isinstance(value, dict):
        return value
    if kind == "any":
        return value
    where = " at %s" % place if place else ""
    message = "the output %s is %s%s, and %s is declared" % (name, shown(value), where, declared["words"])
    raise Fault(INVALID_OUTPUT, message)


def shown(value):
    text = repr(value)
    return "%s %s" % (type(value).__name__, text if len(text) <= 60 else text[:57] + "...")


def described(error):
    """What an execution is answered with that ended so. The log says where it came from."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, Cancelled):
        return Fault(CANCELLED, "cancelled")
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in OWN_FILES:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)
    lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    code = OUT_OF_MEMORY if isinstance(error, MemoryError) else RAISED
    return Fault(code, lines[-1].encode(errors="replace").decode())


def variables():
    """A copy of the environment: of what is below it, where that is to be had, since that costs a tenth."""
    return dict(getattr(os.environ, "_data", os.environ))


def same_file(one, other):
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # The handler has closed it, or put something else in its place.
            pass


def main():
    requests, answers = (int(argument) for argument in sys.argv[1:3])
    for descriptor in (requests, answers):
        os.set_inheritable(descriptor, False)
    sys.argv[1:] = []
    sys.stdout.reconfigure(line_buffering=True)
    worker = Worker(Channel(requests, answers))
    import fcntl

    # The kernel says when something comes while a handler runs; most often nothing does.
    signal.signal(signal.SIGIO, worker.interrupt)
    signal.siginterrupt(signal.SIGIO, False)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(requests, fcntl.F_SETFL, fcntl.fcntl(requests, fcntl.F_GETFL) | os.O_ASYNC)
    worker.serve()


if __name__ == "__main__":
    main()
