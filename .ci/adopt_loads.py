"""The loads of .ci/adopt: bounded, and on loopback."""
import base64, contextlib, hashlib, http.client, json, os, socket, threading, time


class Failure(Exception):
    pass


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def connect(port):
    for _ in range(600):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.05)
    raise Failure(f"nobody listens at {port}")


def in_threads(count, work):
    """Returns what they return, such as connections, which stay open for as long as somebody has them."""
    errors, results = [], []

    def run(number):
        try:
            results.append(work(number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if errors:
        raise errors[0]
    return results


# --- mini-redis

def redis_command(*words):
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


def redis_load(port):
    """20,000 keys of 4 clients, which stay, and as many reads."""
    def client(number):
        with contextlib.closing(connect(port)) as stream, stream.makefile("rb") as answers:
            for first in range(0, 5000, 100):
                keys = [f"key:{number}:{first + key}" for key in range(100)]
                stream.sendall(b"".join(redis_command("set", key, b"v" * 100) for key in keys))
                for _ in keys:
                    assert answers.readline() == b"+OK\r\n"
                stream.sendall(b"".join(redis_command("get", key) for key in keys))
                for _ in keys:
                    assert answers.readline() == b"$100\r\n" and len(answers.readline()) == 102
    in_threads(4, client)


# --- rumqttd

def mqtt_packet(kind, body):
    length, rest = b"", len(body)
    while True:
        rest, digit = rest >> 7, rest & 127
        length += bytes([digit | (128 if rest else 0)])
        if not rest:
            return bytes([kind]) + length + body


def mqtt_text(text):
    return len(text).to_bytes(2, "big") + text.encode()


def mqtt_read(stream):
    kind = stream.read(1)
    length, shift = 0, 0
    while True:
        digit = stream.read(1)[0]
        length |= (digit & 127) << shift
        shift += 7
        if digit < 128:
            return kind[0] >> 4, stream.read(length)


def mqtt_load(port):
    """4 who publish 2,000 messages each, and 4 who have subscribed to them."""
    def hello(stream, answers, name):
        stream.sendall(mqtt_packet(0x10, mqtt_text("MQTT") + b"\x04\x02\x00\x3c" + mqtt_text(name)))
        assert mqtt_read(answers)[0] == 2

    subscribed = threading.Barrier(8)

    def client(number):
        with contextlib.closing(connect(port)) as stream, stream.makefile("rb") as answers:
            hello(stream, answers, f"client-{number}")
            if number < 4:
                stream.sendall(mqtt_packet(0x82, b"\x00\x01" + mqtt_text(f"topic/{number}") + b"\x00"))
                assert mqtt_read(answers)[0] == 9
                subscribed.wait()
                for _ in range(2000):
                    assert mqtt_read(answers)[0] == 3
            else:
                subscribed.wait()
                for message in range(2000):
                    body = mqtt_text(f"topic/{number - 4}") + message.to_bytes(4, "big") * 25
                    stream.sendall(mqtt_packet(0x30, body))
            stream.sendall(mqtt_packet(0xE0, b""))
    in_threads(8, client)


# --- container-registry

def registry_load(port):
    """200 images of 4 clients: a layer of 64 KiB that is uploaded, a manifest, and both are read again."""
    def client(number):
        connect(port).close()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        headers = {"Authorization": "Basic " + base64.b64encode(b"user:word").decode()}

        def ask(method, path, status, body=None):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = answer.read()
            assert answer.status == status, (method, path, answer.status, found)
            return answer, found

        for image in range(50):
            layer = f"{number}:{image}.".encode() * 8192
            digest = "sha256:" + hashlib.sha256(layer).hexdigest()
            name = f"/v2/client-{number}/image-{image}"
            place = ask("POST", f"{name}/blobs/uploads/", 202)[0].headers["Location"]
            ask("PATCH", place, 202, layer)
            ask("PUT", f"{place}?digest={digest}", 201)
            part = {"mediaType": "application/octet-stream", "digest": digest, "size": len(layer)}
            manifest = json.dumps({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": part, "layers": [part]})
            ask("PUT", f"{name}/manifests/latest", 201, manifest)
            assert ask("GET", f"{name}/blobs/{digest}", 200)[1] == layer
            assert json.loads(ask("GET", f"{name}/manifests/latest", 200)[1]) == json.loads(manifest)
        return connection
    return in_threads(4, client)


# --- matchbox

class WebSocket:
    def __init__(self, port, path):
        self.stream = connect(port)
        self.answers = self.stream.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall((
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        assert b" 101 " in self.answers.readline()
        while self.answers.readline() != b"\r\n":
            pass

    def send(self, message):
        text = json.dumps(message).encode()
        # Masked with zeros, so as it is.
        length = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xfe" + len(text).to_bytes(2, "big")
        self.stream.sendall(b"\x81" + length + bytes(4) + text)

    def read(self):
        kind, length = self.answers.read(2)
        assert kind == 0x81, kind
        if length == 126:
            length = int.from_bytes(self.answers.read(2), "big")
        return json.loads(self.answers.read(length))


def matchbox_load(port):
    """4 rooms, in each two peers who send each other 2,000 messages, and stay; and 2,000 requests."""
    def room(number):
        one, other = WebSocket(port, f"/room-{number}"), None
        own = one.read()["IdAssigned"]
        other = WebSocket(port, f"/room-{number}")
        others = other.read()["IdAssigned"]
        assert one.read() == {"NewPeer": others}
        for first in range(0, 2000, 100):
            data = [f"message {first + message} " * 20 for message in range(100)]
            for sender, receiver, receivers in (one, other, others), (other, one, own):
                for text in data:
                    sender.send({"Signal": {"receiver": receivers, "data": text}})
                for text in data:
                    assert receiver.read()["Signal"]["data"] == text
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(500):
            connection.request("GET", "/health")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
        return one, other, connection
    return in_threads(4, room)
