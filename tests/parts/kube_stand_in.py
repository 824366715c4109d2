#!/usr/bin/env python3
"""Stands in for a Kubernetes cluster: an API server that keeps its objects in memory, the controller of Jobs, and one node.

    kube_stand_in.py FOLDER     writes FOLDER/kubeconfig once it answers, and ends when it is asked to

It answers over TLS, to whoever has the token of the kubeconfig; `kubectl` talks to it. Containers are processes of this
machine, with the path where a volume is mounted as a folder of it. A test says otherwise by files in FOLDER: `away` (the
API does not answer), `full` (no node has room), `lost` (a Job is taken, and the answer to it is lost), `quota` (no more
Jobs are taken), `podless` (a Job gets no pod), `forbidden` (the agent may not create Jobs); by `evict` and `oom` what runs
is ended once. An image whose name begins with `missing` is in no registry.
"""

import base64
import copy
import http.server
import json
import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid

TOKEN = "stand-in"
# Of each group and version: what there is, its kind, and whether it is in a namespace.
RESOURCES = {
    "v1": {
        "namespaces": ("Namespace", False), "pods": ("Pod", True), "secrets": ("Secret", True),
        "configmaps": ("ConfigMap", True), "serviceaccounts": ("ServiceAccount", True), "services": ("Service", True),
        "persistentvolumeclaims": ("PersistentVolumeClaim", True), "events": ("Event", True),
    },
    "apps/v1": {"deployments": ("Deployment", True), "statefulsets": ("StatefulSet", True)},
    "batch/v1": {"jobs": ("Job", True)},
    "rbac.authorization.k8s.io/v1": {"roles": ("Role", True), "rolebindings": ("RoleBinding", True)},
    "authorization.k8s.io/v1": {"selfsubjectaccessreviews": ("SelfSubjectAccessReview", False)},
}
VERBS = ["create", "delete", "get", "list", "patch", "update", "watch"]
GRACE_SECONDS = 30


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Refused(Exception):
    """An answer that is a failure."""

    def __init__(self, code, reason, message):
        super().__init__(message)
        self.status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                       "code": code, "reason": reason, "message": message}


def merged(old, patch):
    """As RFC 7386 has it, which is what `kubectl apply` needs here."""
    if not isinstance(patch, dict) or not isinstance(old, dict):
        return patch
    new = dict(old)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merged(new.get(key), value)
    return new


class Objects:
    """All objects, and what has become of them."""

    def __init__(self):
        self.lock = threading.RLock()
        self.all = {}
        self.version = 1
        self.watchers = []

    def stamp(self, event, place, found):
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        for wanted, told in self.watchers:
            if wanted[:2] == place[:2] and wanted[2] in (None, place[2]):
                told.put({"type": event, "object": copy.deepcopy(found)})

    def create(self, api, resource, namespace, body, dry_run):
        kind, is_namespaced = RESOURCES[api][resource]
        metadata = body.setdefault("metadata", {})
        name = metadata.get("name") or metadata.get("generateName", "") + uuid.uuid4().hex[:5]
        body.update(apiVersion=api, kind=kind)
        metadata.update(name=name, uid=str(uuid.uuid4()), creationTimestamp=now())
        if is_namespaced:
            metadata["namespace"] = namespace
        place = (api, resource, namespace if is_namespaced else None, name)
        with self.lock:
            if place in self.all:
                raise Refused(409, "AlreadyExists", f'{resource} "{name}" already exists')
            if not dry_run:
                self.all[place] = body
                self.stamp("ADDED", place, body)
            return copy.deepcopy(body)

    def get(self, api, resource, namespace, name):
        with self.lock:
            found = self.all.get((api, resource, namespace, name))
            if found is None:
                raise Refused(404, "NotFound", f'{resource} "{name}" not found')
            return copy.deepcopy(found)

    def list(self, api, resource, namespace, query):
        with self.lock:
            found = [copy.deepcopy(one) for place, one in sorted(self.all.items(), key=str)
                     if place[:2] == (api, resource) and namespace in (None, place[2])]
            version = str(self.version)
        return [one for one in found if fits(one, query)], version

    def change(self, place, change):
        with self.lock:
            found = self.all.get(place)
            if found is not None:
                change(found)
                self.stamp("MODIFIED", place, found)
            return copy.deepcopy(found)

    def remove(self, place):
        with self.lock:
            found = self.all.pop(place, None)
            if found is not None:
                self.stamp("DELETED", place, found)
            return found


def fits(found, query):
    """Whether an object is one that the selectors of a list or a watch mean."""
    labels = found["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.replace("==", "=").partition("=")
        if labels.get(key) != value:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        key, _, value = term.partition("=")
        if key == "metadata.name" and found["metadata"]["name"] != value:
            return False
    return True


def tree(pid):
    """A process and all below it."""
    below = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    below.setdefault(int(stat.read().rsplit(")", 1)[1].split()[1]), []).append(int(entry))
            except OSError:
                continue  # It has ended meanwhile.
    found = [pid]
    for one in found:
        found.extend(below.get(one, []))
    return found


def kill_tree(pid):
    for one in tree(pid):
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Cluster:
    """The controller of Jobs, and the node."""

    def __init__(self, folder):
        self.folder = folder
        self.objects = Objects()
        self.running = {}
        self.why = {}
        self.ended = set()
        os.makedirs(os.path.join(folder, "logs"), exist_ok=True)
        self.objects.create("v1", "namespaces", None, {"metadata": {"name": "default"}}, False)

    def is_set(self, name):
        return os.path.exists(os.path.join(self.folder, name))

    def was_ordered(self, name):
        try:
            os.remove(os.path.join(self.folder, name))
            return True
        except FileNotFoundError:
            return False

    def log_of(self, name):
        return os.path.join(self.folder, "logs", name)

    def run(self):
        while True:
            for place, job in self.of("jobs"):
                self.control(place, job)
            for place, pod in self.of("pods"):
                self.look_after(place, pod)
            for order, reason in (("evict", "Evicted"), ("oom", "OOMKilled")):
                if self.was_ordered(order):
                    for place, process in list(self.running.items()):
                        self.why[place] = reason
                        process.terminate() if order == "evict" else kill_tree(process.pid)
            time.sleep(0.05)

    def of(self, resource):
        with self.objects.lock:
            return [(place, one) for place, one in self.objects.all.items() if place[1] == resource]

    def control(self, place, job):
        """A Job has one pod, and ends as that does."""
        uid = job["metadata"]["uid"]
        own = [pod for _, pod in self.of("pods") if pod["metadata"]["ownerReferences"][0]["uid"] == uid]
        if job.get("status", {}).get("conditions") or job["spec"].get("suspend"):
            return None
        if not own and uid not in self.ended and self.is_set("podless"):
            return self.refuse(place, job)
        if not own and uid not in self.ended:
            self.ended.add(uid)
            pod = copy.deepcopy(job["spec"]["template"])
            pod["metadata"] = dict(pod.get("metadata") or {}, generateName=job["metadata"]["name"] + "-")
            pod["metadata"]["ownerReferences"] = [
                {"apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"], "uid": uid}]
            pod["status"] = {"phase": "Pending"}
            self.objects.create("v1", "pods", place[2], pod, False)
            return None
        phase = own[0]["status"]["phase"] if own else "Failed"
        if phase in ("Succeeded", "Failed"):
            kind, reason = ("Complete", "CompletionsReached") if phase == "Succeeded" else ("Failed", "BackoffLimitExceeded")
            condition = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now()}
            self.objects.change(place, lambda job: job.update(status={"conditions": [condition]}))
        return None

    def refuse(self, place, job):
        if not self.objects.list("v1", "events", place[2], {})[0]:
            involved = {"kind": "Job", "name": job["metadata"]["name"], "namespace": place[2]}
            message = "pods are forbidden: exceeded quota: compute, requested: cpu=1, used: cpu=8, limited: cpu=8"
            event = {"metadata": {"generateName": "refused-"}, "involvedObject": involved, "reason": "FailedCreate",
                     "message": message, "lastTimestamp": now()}
            self.objects.create("v1", "events", place[2], event, False)

    def look_after(self, place, pod):
        process, phase = self.running.get(place), pod["status"]["phase"]
        if process is not None:
            if process.poll() is not None:
                del self.running[place]
                self.over(place, process.returncode)
            elif "deletionTimestamp" in pod["metadata"] and time.time() > self.why.get((place, "deadline"), 0):
                kill_tree(process.pid)
        elif "deletionTimestamp" in pod["metadata"]:
            self.objects.remove(place)
        elif phase == "Pending":
            self.start(place, pod)

    def start(self, place, pod):
        container = pod["spec"]["containers"][0]
        if self.is_set("full"):
            message = "0/1 nodes are available: 1 Insufficient cpu."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            return self.wait_with(place, pod, {"conditions": [condition]})
        if container["image"].startswith("missing"):
            message = f'Back-off pulling image "{container["image"]}"'
            state = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
            return self.wait_with(place, pod, {"startTime": now(), "containerStatuses": [status(container, state)]})
        environment = {one["name"]: one["value"] for one in container.get("env") or []}
        environment.update(PATH=os.environ["PATH"], KUBERNETES_SERVICE_HOST="127.0.0.1", HOSTNAME=place[3])
        with open(self.log_of(place[3]), "wb") as log:
            try:
                process = subprocess.Popen(container["command"] + (container.get("args") or []), env=environment, cwd="/",
                                           stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            except OSError as error:
                log.write(str(error).encode())
                process = None
        if process is None:
            return self.over(place, 127)
        self.running[place] = process
        running = {"phase": "Running", "startTime": now(),
                   "containerStatuses": [status(container, {"running": {"startedAt": now()}})]}
        return self.objects.change(place, lambda pod: (pod["spec"].update(nodeName="node1"), pod.update(status=running)))

    def wait_with(self, place, pod, more):
        if "conditions" in more or "containerStatuses" not in pod["status"]:
            if any(pod["status"].get(key) != value for key, value in more.items()):
                self.objects.change(place, lambda pod: pod.update(status=dict(more, phase="Pending")))

    def over(self, place, code):
        with open(self.log_of(place[3]), errors="replace") as log:
            said = log.read()[-2048:]
        why = self.why.pop(place, None)
        code = 128 - code if code < 0 else code
        reason = "OOMKilled" if why == "OOMKilled" else "Completed" if code == 0 else "Error"
        ended = {"exitCode": code, "reason": reason, "finishedAt": now()}
        if code != 0 and said:
            ended["message"] = said

        def change(pod):
            new = {"phase": "Succeeded" if code == 0 and why is None else "Failed",
                   "containerStatuses": [status(pod["spec"]["containers"][0], {"terminated": ended})]}
            if why == "Evicted":
                new.update(reason="Evicted", message="The node was low on resource: ephemeral-storage.")
            pod["status"] = new
        self.objects.change(place, change)

    def delete(self, place):
        """A pod goes when its process has; with a Job go its pods."""
        if place[1] == "jobs":
            job = self.objects.remove(place)
            for of_pod, pod in self.of("pods"):
                if pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]:
                    self.delete(of_pod)
            return job
        if place[1] != "pods":
            return self.objects.remove(place)
        found = self.objects.change(place, lambda pod: pod["metadata"].setdefault("deletionTimestamp", now()))
        process = self.running.get(place)
        if process is not None:
            self.why[(place, "deadline")] = time.time() + GRACE_SECONDS
            process.terminate()
        return found

    def stop(self):
        for process in list(self.running.values()):
            kill_tree(process.pid)


def status(container, state):
    return {"name": container["name"], "image": container["image"], "imageID": "", "ready": "running" in state,
            "restartCount": 0, "state": state}


def discovery(path):
    """What there is, for `kubectl`."""
    if path == "/version":
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0-stand-in", "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        groups = []
        for api in RESOURCES:
            if "/" in api:
                version = {"groupVersion": api, "version": api.split("/")[1]}
                groups.append({"name": api.split("/")[0], "versions": [version], "preferredVersion": version})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    for api, resources in RESOURCES.items():
        if path == ("/api/v1" if api == "v1" else f"/apis/{api}"):
            listed = [{"name": name, "singularName": kind.lower(), "namespaced": is_namespaced, "kind": kind,
                       "verbs": VERBS} for name, (kind, is_namespaced) in resources.items()]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": listed}
    if path == "/openapi/v3":
        return {"paths": {}}
    return None


def field(number, content):
    """One of a message in the form that `kubectl` wants schemas in."""
    return bytes([number << 3 | 2, len(content)]) + content


# Schemas: there are none, so what is applied is not checked against any.
OPENAPI_V2 = (field(1, b"2.0") + field(2, field(1, b"stand-in") + field(2, b"1")) + field(8, b"") + field(9, b""))


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, format, *arguments):
        pass

    def answer(self, code, body, kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.cluster.is_set("away"):
            self.close_connection = True
            return
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        try:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            if b"\0" in body:
                raise Refused(415, "UnsupportedMediaType", "this server speaks JSON alone")
            self.route(url.path, query, json.loads(body) if body.strip() else {})
        except Refused as refused:
            self.answer(refused.status["code"], refused.status)
        except BrokenPipeError:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def route(self, path, query, body):
        found = discovery(path.rstrip("/"))
        if found is not None:
            return self.answer(200, found)
        if path == "/openapi/v2":
            return self.answer(200, OPENAPI_V2, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        words = path.strip("/").split("/")
        api, words = ("v1", words[2:]) if words[0] == "api" else ("/".join(words[1:3]), words[3:])
        namespace = None
        if words[:1] == ["namespaces"] and len(words) > 2:
            namespace, words = words[1], words[2:]
        if not words or words[0] not in RESOURCES.get(api, {}):
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if words[0] == "selfsubjectaccessreviews":
            return self.review(body)
        if len(words) == 3 and words[2] == "log":
            return self.log(words[1])
        place = (api, words[0], namespace, words[1] if len(words) > 1 else None)
        return self.on_objects(place, query, body)

    def on_objects(self, place, query, body):
        objects, (api, resource, namespace, name) = self.cluster.objects, place
        if self.command == "GET" and name is not None:
            return self.answer(200, objects.get(*place))
        if self.command == "GET" and query.get("watch") in ("true", "1"):
            return self.watch(place, query)
        if self.command == "GET":
            items, version = objects.list(api, resource, namespace, query)
            kind = RESOURCES[api][resource][0] + "List"
            return self.answer(200, {"kind": kind, "apiVersion": api, "metadata": {"resourceVersion": version}, "items": items})
        if self.command == "POST":
            return self.create(place, query, body)
        if self.command in ("PUT", "PATCH"):
            objects.get(*place)

            def change(found):
                new = merged(found, body) if self.command == "PATCH" else body
                found.update(new)
            return self.answer(200, objects.change(place, change))
        objects.get(*place)
        return self.answer(200, self.cluster.delete(place))

    def create(self, place, query, body):
        api, resource, namespace, _ = place
        if resource == "jobs" and self.cluster.is_set("forbidden"):
            raise Refused(403, "Forbidden", f'jobs.batch is forbidden: User "agent" cannot create resource "jobs" in API group "batch" in the namespace "{namespace}"')
        if resource == "jobs" and self.cluster.is_set("quota"):
            raise Refused(403, "Forbidden", "jobs.batch is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: 5, limited: 5")
        if namespace is not None and resource != "namespaces":
            self.cluster.objects.get("v1", "namespaces", None, namespace)
        made = self.cluster.objects.create(api, resource, namespace, body, query.get("dryRun") == "All")
        if resource == "jobs" and self.cluster.is_set("lost"):
            self.close_connection = True
            return None
        return self.answer(201, made)

    def review(self, body):
        asked = body["spec"]["resourceAttributes"]
        is_denied = self.cluster.is_set("forbidden") and asked.get("verb") == "create" and asked.get("resource") == "jobs"
        return self.answer(201, dict(body, status={"allowed": not is_denied}))

    def log(self, name):
        try:
            with open(self.cluster.log_of(name), "rb") as log:
                return self.answer(200, log.read(), "text/plain")
        except FileNotFoundError:
            raise Refused(404, "NotFound", f'pods "{name}" not found') from None

    def watch(self, place, query):
        told = queue.Queue()
        watcher = (place[:3], told)
        with self.cluster.objects.lock:
            if query.get("resourceVersion") in (None, "", "0"):
                for found in self.cluster.objects.list(*place[:3], query)[0]:
                    told.put({"type": "ADDED", "object": found})
            self.cluster.objects.watchers.append(watcher)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        until = time.time() + int(query.get("timeoutSeconds") or 300)
        try:
            while time.time() < until and not self.cluster.is_set("away"):
                try:
                    event = told.get(timeout=0.2)
                except queue.Empty:
                    continue
                if fits(event["object"], query):
                    line = json.dumps(event).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        finally:
            self.close_connection = True
            with self.cluster.objects.lock:
                self.cluster.objects.watchers.remove(watcher)


def secure(folder):
    """Makes a certificate of this server alone."""
    key, certificate = os.path.join(folder, "key.pem"), os.path.join(folder, "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=stand-in", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
         "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with open(certificate, "rb") as file:
        return context, base64.b64encode(file.read()).decode()


def main():
    folder = sys.argv[1]
    context, authority = secure(folder)
    cluster = Handler.cluster = Cluster(folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # A handshake is for the thread of its connection.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    threading.Thread(target=cluster.run, daemon=True).start()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "stand-in",
        "clusters": [{"name": "stand-in", "cluster": {
            "server": f"https://127.0.0.1:{server.server_address[1]}", "certificate-authority-data": authority}}],
        "users": [{"name": "agent", "user": {"token": TOKEN}}],
        "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "agent", "namespace": "default"}}],
    }
    path = os.path.join(folder, "kubeconfig")
    with open(path + ".next", "w") as file:
        json.dump(config, file)
    os.rename(path + ".next", path)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    cluster.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
