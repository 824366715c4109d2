#!/usr/bin/env python3
"""Stands in for the programs of PBS, LSF, Flux and HTCondor: what each prints, and how it ends, is as the real ones have it.

    batch_fakes.py FOLDER       puts the programs into FOLDER/bin; what they know of jobs is in FOLDER/jobs

Jobs run at once, as processes of this machine. A test says otherwise by files in FOLDER: `away` (the server does not
answer), `full` (jobs wait), `stuck` (jobs cannot be started), `lost` (a job is taken, and the answer to its submission is
lost), `no-history` (PBS knows nothing of what has ended). It may write FOLDER/jobs/NUMBER itself.
"""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

# How each place where a job stands looks: its state, its code, and the reason of it.
LOOKS = {
    "pbs": {
        "waiting": ("Q", "", "Not Running: Insufficient amount of resource: ncpus"),
        "stuck": ("H", "", "job held, too many failed attempts to run"),
        "running": ("R", "", "Job run at Mon Nov 23 at 13:00 on (node1:ncpus=1)"),
        "timed-out": ("F", "-29", "Job run at Mon Nov 23 at 13:00 on (node1:ncpus=1) and failed"),
        "out-of-memory": ("F", "-27", "Job run at Mon Nov 23 at 13:00 on (node1:ncpus=1) and failed"),
        "lost": ("F", "-1", "Job run at Mon Nov 23 at 13:00 on (node1:ncpus=1) and failed"),
        "cancelled": ("F", "271", "Job run at Mon Nov 23 at 13:00 on (node1:ncpus=1) and failed"),
        "ended": ("F", "0", "Job run at Mon Nov 23 at 13:00 on (node1:ncpus=1) and finished"),
    },
    "lsf": {
        "waiting": ("PEND", "-", "-|Job slot limit reached;"),
        "stuck": ("PEND", "-", "-|Failed to start"),
        "running": ("RUN", "-", "-|-"),
        "timed-out": ("EXIT", "140", "TERM_RUNLIMIT: job killed after reaching LSF run time limit|-"),
        "out-of-memory": ("EXIT", "137", "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit|-"),
        "lost": ("EXIT", "-", "TERM_PREEMPT: job killed after preemption|-"),
        "cancelled": ("EXIT", "130", "TERM_OWNER: job killed by owner|-"),
        "ended": ("DONE", "-", "-|-"),
    },
    "flux": {
        "waiting": ("SCHED", "", "|"),
        "stuck": ("SCHED", "", "|"),
        "running": ("RUN", "", "|"),
        "timed-out": ("TIMEOUT", "142", "timeout|resource allocation expired"),
        "out-of-memory": ("FAILED", "137", "|"),
        "lost": ("FAILED", "", "exec|node1 (rank 1): lost contact with job shell"),
        "cancelled": ("CANCELED", "143", "cancel|"),
        "ended": ("COMPLETED", "0", "|"),
    },
    "htcondor": {
        "waiting": ("1", "undefined", "undefined\tundefined"),
        "stuck": ("5", "6", "Error from slot1@node1: Failed to execute '/opt/atoll'\tundefined"),
        "running": ("2", "undefined", "undefined\tundefined"),
        "timed-out": ("5", "47", "The job exceeded allowed execute duration of 0+00:01:00\tundefined"),
        "out-of-memory": ("5", "34", "Error from slot1@node1: memory usage exceeded request_memory\tundefined"),
        "lost": ("3", "undefined", "undefined\tThe job attribute PeriodicRemove expression '...' evaluated to TRUE"),
        "cancelled": ("3", "undefined", "undefined\tvia condor_rm (by user atoll)"),
        "ended": ("4", "undefined", "undefined\tundefined"),
    },
}
OVER = ("timed-out", "out-of-memory", "lost", "cancelled", "ended")
AWAY = {
    "pbs": ("{program}: cannot connect to server pbs (errno=111)", 111),
    "lsf": ("Failed in an LSF library call: LIM is down; try later. Job not submitted.", 255),
    "flux": ("{program}: ERROR: Unable to connect to Flux: broker socket /run/flux/local was not found", 1),
    "htcondor": ("ERROR: Can't find address of local schedd", 1),
}
LOST = {
    "pbs": ("qsub: End of File", 1),
    "lsf": ("Failed in an LSF library call: Communication time out. Job not submitted.", 255),
    "flux": ("flux-submit: ERROR: Connection reset by peer", 1),
    "htcondor": ("ERROR: Failed to commit job submission into the queue.", 1),
}
SYSTEM_OF = {
    "qsub": "pbs", "qstat": "pbs", "qselect": "pbs", "qdel": "pbs",
    "bsub": "lsf", "bjobs": "lsf", "bkill": "lsf", "lsid": "lsf",
    "flux": "flux",
    "condor_submit": "htcondor", "condor_q": "htcondor", "condor_rm": "htcondor", "condor_status": "htcondor",
}


class Cluster:
    def __init__(self, folder):
        self.folder = folder
        self.program = os.path.basename(sys.argv[0])
        self.system = SYSTEM_OF[self.program]

    def has(self, name):
        return os.path.exists(os.path.join(self.folder, name))

    def path(self, number):
        return os.path.join(self.folder, "jobs", str(number))

    def jobs(self):
        numbers = (name for name in os.listdir(os.path.join(self.folder, "jobs")) if name.isdigit())
        return [self.read(number) for number in sorted(numbers, key=int)]

    def read(self, number):
        try:
            with open(self.path(number)) as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def write(self, job):
        next_path = f"{self.path(job['number'])}.{os.getpid()}"
        with open(next_path, "w") as file:
            json.dump(job, file)
        os.rename(next_path, self.path(job["number"]))

    def add(self, name, text, words, environment):
        """Takes a job, and has it run unless a test wants something else."""
        with open(os.path.join(self.folder, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            number = max((job["number"] for job in self.jobs()), default=11) + 1
            stands = "stuck" if self.has("stuck") else "waiting" if self.has("full") else "running"
            job = {"number": number, "name": name, "is": stands, "text": text}
            self.write(job)
        if stands == "running":
            self.start(job, words, environment)
        return number

    def start(self, job, words, environment):
        if os.fork():
            return
        os.setsid()
        for descriptor in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
        # Not a child of the session whose processes are told to end.
        child = subprocess.Popen(words, env={**inherited, **environment(job["number"])}, start_new_session=True)
        self.write({**job, "pid": child.pid})
        code = child.wait()
        now = self.read(job["number"])
        over = "cancelled" if now.get("told") else "ended"
        self.write({**now, "is": over, "code": code})
        os._exit(0)

    def cancel(self, number):
        """Nothing if there is no such job, and whether it was not over yet."""
        job = self.read(number)
        if job is None:
            return None
        while job["is"] == "running" and "pid" not in job:
            time.sleep(0.01)
            job = self.read(number)
        if job["is"] in OVER:
            return False
        if job["is"] == "running":
            self.write({**job, "told": True})
            os.killpg(job["pid"], signal.SIGTERM)
        else:
            self.write({**job, "is": "cancelled"})
        return True

    def look(self, job):
        state, code, reason = LOOKS[self.system][job["is"]]
        if job["is"] == "ended" and job.get("code"):
            # A signal counts from there on.
            signals = 256 if self.system == "pbs" else 128
            code = str(job["code"] if job["code"] > 0 else signals - job["code"])
            state = {"lsf": "EXIT", "flux": "FAILED"}.get(self.system, state)
        return state, code, reason


def end(message, code):
    print(message, file=sys.stderr)
    sys.exit(code)


def directives(text, mark):
    """The options of a script, by their letter."""
    found = {}
    for line in text.splitlines():
        if line.startswith(mark):
            words = shlex.split(line[len(mark) :])
            found.setdefault(words[0], " ".join(words[1:]))
    return found


def shell(text):
    return ["sh", "-c", text]


def pbs(cluster, words):
    number_of = lambda word: int(word.split(".")[0])
    if cluster.program == "qsub":
        text = sys.stdin.read()
        said = directives(text, "#PBS")
        if said.get("-q") == "nope":
            end("qsub: Unknown queue", 170)
        number = cluster.add(said["-N"], text, shell(text), lambda number: {"PBS_JOBID": f"{number}.pbs"})
        if cluster.has("lost"):
            end(*LOST["pbs"])
        print(f"{number}.pbs")
    elif cluster.program == "qselect":
        if "-x" in words and cluster.has("no-history"):
            end("qselect: PBS is not configured to maintain job history", 1)
        name = words[words.index("-N") + 1]
        for job in cluster.jobs():
            if job["name"] == name and ("-x" in words or job["is"] not in OVER):
                print(f"{job['number']}.pbs")
    elif cluster.program == "qdel":
        done = cluster.cancel(number_of(words[0]))
        if done is None:
            end(f"qdel: Unknown Job Id {words[0]}", 153)
        if not done:
            end(f"qdel: Job has finished {words[0]}", 35)
    elif words == ["-Q"]:
        print("workq")
    else:
        qstat(cluster, words, number_of)


def qstat(cluster, words, number_of):
    if "-x" in words and cluster.has("no-history"):
        end("qstat: PBS is not configured to maintain job history", 1)
    code = 0
    for word in (word for word in words if not word.startswith("-")):
        job = cluster.read(number_of(word))
        if job is None or (cluster.has("no-history") and job["is"] in OVER):
            print(f"qstat: Unknown Job Id {word}", file=sys.stderr)
            code = 153
            continue
        state, exit_status, comment = cluster.look(job)
        print(f"Job Id: {job['number']}.pbs")
        lines = [f"Job_Name = {job['name']}", "Job_Owner = atoll@login", f"job_state = {state}", f"comment = {comment}"]
        lines += [f"Exit_status = {exit_status}"] if exit_status else []
        for line in lines:
            # Lines are 79 letters long, and go on after a tab.
            line = "    " + line
            parts = [line[:79]] + [line[at : at + 71] for at in range(79, len(line), 71)]
            print("\n\t".join(parts))
        print()
    sys.exit(code)


def lsf(cluster, words):
    if cluster.program == "bsub":
        text = sys.stdin.read()
        said = directives(text, "#BSUB")
        if said.get("-q") == "nope":
            end("nope: No such queue. Job not submitted.", 255)
        number = cluster.add(said["-J"], text, shell(text), lambda number: {"LSB_JOBID": str(number)})
        if cluster.has("lost"):
            end(*LOST["lsf"])
        print(f"Job <{number}> is submitted to default queue <normal>.")
    elif cluster.program == "bkill":
        done = cluster.cancel(int(words[0]))
        if done is None:
            end(f"Job <{words[0]}>: No matching job found", 255)
        if not done:
            end(f"Job <{words[0]}>: Job has already finished", 255)
        print(f"Job <{words[0]}> is being terminated")
    elif cluster.program == "bjobs":
        jobs = cluster.jobs()
        for job in jobs:
            state, code, reason = cluster.look(job)
            print(f"{job['number']}|{state}|{code}|{job['name']}|{reason}")
        if not jobs:
            end("Job <atoll.*> is not found", 255)


def flux(cluster, words):
    command, words = words[0], words[1:]
    if command == "submit":
        at = next(at for at, word in enumerate(words) if not word.startswith("-"))
        said = dict(word[2:].split("=", 1) for word in words[:at] if "=" in word)
        if said.get("queue") == "nope":
            end("flux-submit: ERROR: Invalid queue 'nope' specified", 1)
        environment = lambda number: {"FLUX_JOB_ID": f"f{number}"}
        number = cluster.add(said["job-name"], words[-1], words[at:], environment)
        if cluster.has("lost"):
            end(*LOST["flux"])
        print(f"f{number}")
    elif command == "cancel":
        done = cluster.cancel(int(words[0][1:]))
        if done is None:
            end(f"flux-cancel: ERROR: {words[0]}: unknown job id", 1)
        if not done:
            end(f"flux-cancel: ERROR: {words[0]}: job is inactive", 1)
    elif command == "jobs":
        for job in cluster.jobs():
            state, code, reason = cluster.look(job)
            print(f"f{job['number']}|{state}|{code}|{job['name']}|{reason}")


def htcondor(cluster, words):
    if cluster.program == "condor_submit":
        text = sys.stdin.read()
        said = dict((part.strip() for part in line.split("=", 1)) for line in text.splitlines() if "=" in line)
        if said.get("accounting_group") == "nope":
            end("\nERROR: Failed to set accounting_group: nope is not allowed", 1)
        # A word in single quotes has two for one; two double quotes are one.
        quoted = re.findall(r"'((?:[^']|'')*)'", said["arguments"].strip('"'))
        arguments = [word.replace("''", "'").replace('""', '"') for word in quoted]
        name = said["+AtollName"].strip('"')
        environment = lambda number: {"ATOLL_CLUSTER": str(number)}
        number = cluster.add(name, text, [said["executable"], *arguments], environment)
        if cluster.has("lost"):
            end(*LOST["htcondor"])
        print(f"Submitting job(s).\n1 job(s) submitted to cluster {number}.")
    elif cluster.program == "condor_rm":
        found = re.fullmatch(r'ClusterId == (\d+) && AtollName == "(.*)"', words[1])
        job = cluster.read(found.group(1))
        if job is None or job["name"] != found.group(2) or not cluster.cancel(job["number"]):
            end(f"Couldn't find/remove all jobs matching constraint ({words[1]})", 1)
        print(f"Jobs matching constraint ({words[1]}) have been marked for removal")
    elif cluster.program == "condor_q":
        for job in cluster.jobs():
            state, _, reason = cluster.look(job)
            code = LOOKS["htcondor"][job["is"]][1]
            print(f"{job['number']}\t{state}\t{code}\t{job['name']}\t{reason}")


def main():
    if os.path.basename(sys.argv[0]) == "batch_fakes.py":
        folder = os.path.abspath(sys.argv[1])
        os.makedirs(os.path.join(folder, "bin"), exist_ok=True)
        os.makedirs(os.path.join(folder, "jobs"), exist_ok=True)
        for program in SYSTEM_OF:
            os.symlink(os.path.abspath(__file__), os.path.join(folder, "bin", program))
        return
    # The link that it was started by stands in the folder of the programs.
    cluster = Cluster(os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0]))))
    if cluster.has("away"):
        message, code = AWAY[cluster.system]
        end(message.format(program=cluster.program), code)
    {"pbs": pbs, "lsf": lsf, "flux": flux, "htcondor": htcondor}[cluster.system](cluster, sys.argv[1:])


main()
