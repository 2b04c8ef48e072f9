"""The program that a tool's process runs first: it confines itself, and then becomes the tool.

Run as `python -I -S tool_launcher.py DESCRIPTOR`, where the descriptor holds a marshalled `Order` of `confinement.py`.
It is not imported: to start fast it uses nothing but what Python brings along in C, and ctypes. What goes wrong is
written to the descriptor `status` as a marshalled (stage, errno, name); when the tool runs, that is closed empty.
"""

import ctypes
import marshal
import os
import resource
import sys
from _signal import SIG_DFL, SIGKILL, SIGPIPE, SIGXFSZ, signal  # type: ignore[import-not-found]

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_DROP = 24
# By their numbers: SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF. For a daemon that runs as root, against
# the advice: with them a tool could look into the daemon past Landlock (PERFMON opens /proc/PID/environ).
PRYING_CAPABILITIES = (16, 17, 19, 21, 38, 39)

# linux/landlock.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
RULE_PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE = 1 << 13, 1 << 14
BASIC = (1 << 13) - 1  # what the first version knows
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
SCOPES = 0b11  # abstract unix sockets and signals: neither reaches a process outside
READ = EXECUTE | READ_FILE | READ_DIR
DEVICES = (b"/dev/null", b"/dev/zero", b"/dev/full", b"/dev/random", b"/dev/urandom", b"/dev/tty")

libc = ctypes.CDLL(None, use_errno=True)


class StageError(Exception):
    pass


def checked(result: int, stage: str) -> int:
    if result < 0:
        raise StageError(stage, ctypes.get_errno(), "")
    return result


class Landlock:
    """A ruleset in the making: everything it handles is forbidden but for what is allowed."""

    def __init__(self, abi: int) -> None:
        self.handled = BASIC | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0)
        # handled_access_fs, handled_access_net, scoped: older kernels know fewer fields.
        attributes = (ctypes.c_uint64 * 3)(self.handled, 0, SCOPES if abi >= 6 else 0)
        size = 24 if abi >= 6 else 8
        self.ruleset = checked(libc.syscall(CREATE_RULESET, attributes, size, 0), "landlock")

    def allow(self, path: bytes, access: int) -> None:
        """Allow that beneath a directory, or for a file. Raises OSError if it cannot be opened."""
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            is_folder = os.fstat(descriptor).st_mode & 0o170000 == 0o040000
            allowed = access & self.handled & (-1 if is_folder else OF_FILES)
            # struct landlock_path_beneath_attr, packed: u64 and s32
            rule = allowed.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
            checked(libc.syscall(ADD_RULE, self.ruleset, RULE_PATH_BENEATH, rule, 0), "landlock")
        finally:
            os.close(descriptor)

    def allow_reading(self, folder: bytes, hidden: set[bytes]) -> None:
        """Allow reading beneath the folder, but for the hidden paths.

        Rules can only allow, so a folder that holds something hidden is allowed entry by entry.
        """
        prefix = folder.rstrip(b"/") + b"/"
        inside = {path for path in hidden if path.startswith(prefix)}
        if not inside:
            self.allow(folder, READ)
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.path in hidden or entry.is_symlink():
                    continue
                try:
                    if entry.is_dir():
                        self.allow_reading(entry.path, inside)
                    else:
                        self.allow(entry.path, READ)
                except OSError:  # it is gone, or out of reach anyway
                    continue

    def enforce(self) -> None:
        checked(libc.syscall(RESTRICT_SELF, self.ruleset, 0), "landlock")
        os.close(self.ruleset)


def restrict_files(writable: list[bytes], hidden: list[bytes]) -> None:
    abi = libc.syscall(CREATE_RULESET, None, 0, 1)
    if abi < 1:  # the kernel does not have it, or a filter of system calls forbids it
        return
    landlock = Landlock(abi)
    # Names may be listed everywhere: `ls /` has to work.
    landlock.allow(b"/", READ_DIR)
    landlock.allow_reading(b"/", {os.path.realpath(path) for path in hidden})
    for device in DEVICES:
        try:
            landlock.allow(device, READ | WRITE_FILE | TRUNCATE)
        except FileNotFoundError:  # a container need not have them all
            continue
    for path in writable:
        try:
            landlock.allow(path, landlock.handled)
        except OSError as exc:
            raise StageError("writable", exc.errno, os.fsdecode(path)) from exc
    landlock.enforce()


def confine(order: dict) -> None:  # type: ignore[type-arg]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = order["open_files"] if hard == resource.RLIM_INFINITY else min(order["open_files"], hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    checked(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != order["parent"]:  # it died before we asked to be told
        os._exit(1)
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    if order["restrict_files"]:
        for capability in PRYING_CAPABILITIES:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for those who do not have them anyway
        restrict_files(order["writable"], order["hidden"])


def limit_memory(memory: int) -> None:
    """Limit what the tool may write to of its own. Address space is left alone: many runtimes reserve terabytes."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
    descriptor = int(sys.argv[1])
    with os.fdopen(descriptor, "rb") as file:
        order = marshal.loads(file.read())  # noqa: S302 - written by the daemon
    status = order["status"]
    os.set_inheritable(status, False)
    try:
        confine(order)
        # Python ignores these two, and a program inherits that.
        signal(SIGPIPE, SIG_DFL)
        signal(SIGXFSZ, SIG_DFL)
        if order["memory"] is not None:
            limit_memory(order["memory"])
        os.execvpe(order["command"][0], order["command"], order["environment"])  # noqa: S606 - that is the point
    except StageError as exc:
        failure = exc.args
    except (OSError, ValueError) as exc:
        failure = ("command", exc.errno if isinstance(exc, OSError) else 0, str(exc))
    os.write(status, marshal.dumps(failure))
    os._exit(127)


main()
