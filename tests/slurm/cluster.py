"""A real Slurm of two virtual nodes on this machine: a few background processes in one folder.

Nothing outside the folder is touched. Nodes have four places each, whatever the machine has; a
requeued job waits five seconds, not two minutes. Both nodes are this machine, whose name is not
node1, so jobs of two nodes need MASTER_ADDR=127.0.0.1.
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ReturnToService=2
KillWait=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=node1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=node2 NodeHostname=node2 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
"""


class Cluster:
    """Starts when it is entered, and ends its jobs and processes when it is left."""

    def __init__(self) -> None:
        self.folder = Path(
            tempfile.mkdtemp(prefix="slurm", dir="/tmp")
        )  # sockets' names are short
        self.processes: list[subprocess.Popen] = []
        outside = {name: value for name, value in os.environ.items() if name[:5] != "SLURM"}
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin:/usr/local/sbin"
        self.environment = {**outside, "PATH": path, "SLURM_CONF": f"{self.folder}/slurm.conf"}

    def __enter__(self) -> "Cluster":
        missing = [name for name in PROGRAMS if not self.which(name)]
        assert not missing, f"{missing} not found; as root: apt-get install -y {PACKAGES}"
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if any(process.args[0] == "slurmctld" for process in self.processes):
            self._end_jobs()
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def which(self, name: str) -> str | None:
        return shutil.which(name, path=self.environment["PATH"])

    def run(
        self, *command: str, cwd: Path | None = None, seconds: float = 30, **environment: str
    ) -> str:
        """What a command prints; variables that are given are added to its environment."""
        variables = {**self.environment, **environment}
        done = subprocess.run(
            command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job, or of a task as JOB_TASK."""
        text = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def wait(self, number: str, seconds: float = 90, state: str = "") -> dict[str, str]:
        """Waits until a job has ended, or is in a state, and describes it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job = self.job(number)
            if job["JobState"] in (
                [state] if state else ["COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"]
            ):
                return job
            time.sleep(0.3)
        raise AssertionError(f"job {number} is {job['JobState']} after {seconds} s: {job}")

    def _start(self) -> None:
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        names = {"user": self.run("id", "-un"), "host": socket.gethostname().split(".")[0]}
        text = CONFIGURATION.format(folder=self.folder, ports=free_ports(3), **names)
        (self.folder / "slurm.conf").write_text(text)
        munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid",
                 "log-file": "munged.log", "seed-file": "munged.seed"}  # fmt: skip
        files = [f"--{name}={self.folder}/{file}" for name, file in munge.items()]
        self._launch("munged", "--foreground", "--force", *files)
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._launch("slurmctld", "-D", "-c")
        for node in ("node1", "node2"):
            (self.folder / node).mkdir()
            self._launch("slurmd", "-D", "-N", node)
        self._until(lambda: self._idle() == 2, "the nodes")

    def _launch(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)

    def _idle(self) -> int:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%t"],
            env=self.environment, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        return done.stdout.split().count("idle")

    def _until(self, is_true, name: str) -> None:
        end = time.monotonic() + 30
        while not is_true():
            ended = [process.args for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(file.read_text()[-2000:] for file in self.folder.glob("*.out"))
                raise AssertionError(f"{name} did not start; ended: {ended}\n{logs}")
            time.sleep(0.1)

    def _end_jobs(self) -> None:
        """Ends all jobs and waits until their processes are gone."""
        user = self.run("id", "-un")
        subprocess.run(["scancel", f"--user={user}"], env=self.environment, timeout=30)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            listed = ["squeue", "--noheader", "--states=RUNNING,COMPLETING"]
            done = subprocess.run(listed, env=self.environment, capture_output=True, timeout=30)
            if not done.stdout.strip():
                return
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
