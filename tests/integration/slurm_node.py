"""A Slurm of one node, from the installed programs or from Debian's packages, unpacked."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "srun", "sbatch", "scontrol", "scancel")
PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins"),
    *("munge", "libmunge2", "libhwloc15"),
)
LIBRARIES = "usr/lib/x86_64-linux-gnu"
SECONDS = 600
# The controller gives back a job's number after `cred_expire`; requeued, it waits for it.
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Node:
    """A running Slurm.

    Attributes:
        environment: variables with which its commands and jobs run.
    """

    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Run a command of Slurm and return its output."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what the controller knows of a job: JobState, Reason, Restarts, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return {name: value for name, _, value in (word.partition("=") for word in words)}


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fail if it is never met."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.05)


def _unpacked(folder: Path) -> Path:
    """Download Debian's packages and unpack them; skip the test if that cannot be done."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("Slurm is not installed, and there is no apt-get to download it")
    download = ["apt-get", "download", "-q", *PACKAGES]
    done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"Slurm is not installed, and apt-get cannot download it: {done.stderr}")
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "root")], check=True)
    root = folder / "root"
    # Debian's alternatives give the programs their names only when they are installed.
    for path in root.glob("usr/sbin/*-wlm"):
        path.with_name(path.name.removesuffix("-wlm")).symlink_to(path)
    return root


def _programs(folder: Path) -> tuple[dict[str, str], str]:
    """Return the environment of Slurm's programs, and a line of its configuration."""
    own = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    places = [str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep)]
    path = os.pathsep.join([*places, "/usr/sbin"])
    if all(shutil.which(program, path=path) for program in PROGRAMS):
        return own | {"PATH": path}, ""
    root = _unpacked(folder)
    plugins = root / LIBRARIES / "slurm-wlm"
    path = os.pathsep.join([places[0], f"{root}/usr/bin", f"{root}/usr/sbin", *places[1:]])
    libraries = os.pathsep.join([str(plugins.parent), str(plugins)])
    return own | {"PATH": path, "LD_LIBRARY_PATH": libraries}, f"PluginDir={plugins}\n"


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)


@contextmanager
def slurm_node(folder: Path) -> Iterator[Node]:
    """Start a Slurm whose files lie in a folder; end it with the context."""
    environment, plugins = _programs(folder)
    host = socket.gethostname().partition(".")[0]
    filled = CONFIGURATION.format(
        folder=folder, host=host, user=getpass.getuser(), ports=_free_ports(2), cpus=os.cpu_count()
    )
    (folder / "slurm.conf").write_text(filled + plugins)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    files = {"key-file": key, "socket": folder / "munge.socket", "seed-file": folder / "seed"}
    files |= {"pid-file": folder / "munged.pid", "log-file": folder / "munged.log"}
    munged = ["munged", "--foreground", "--force", *(f"--{n}={path}" for n, path in files.items())]
    stepd = shutil.which("slurmstepd", path=environment["PATH"])
    node = Node(environment)
    with ExitStack() as stack:
        stack.enter_context(_running(munged, environment, folder / "munged.out"))
        wait_for(files["socket"].exists, "munged's socket")
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-d", str(stepd)]):
            log = folder / f"{command[0]}.out"
            stack.enter_context(_running(command, environment, log))
        wait_for(lambda: "State=IDLE" in _shown(node, host), "an idle node")
        yield node


def _shown(node: Node, host: str) -> str:
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "node", host],
        env=node.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout
