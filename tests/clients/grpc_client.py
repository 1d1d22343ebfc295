"""A gRPC client without stubs: it learns every message from the server's reflection."""

import threading

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from gateway import OPS_KEY, TEAM_KEY

MESSAGES = [("grpc.max_receive_message_length", -1), ("grpc.max_metadata_size", 1 << 20)]

# Services by name, which no process forgets: a message's class that nobody uses is garbage to protobuf, and yet it gives
# out again what another thread is just collecting. A message of such a class crashes the interpreter.
_services, _lock = {}, threading.Lock()


class Service:
    """What a server tells of one service, with the classes of all messages of its file and of those imported by it."""

    def __init__(self, name, database):
        self.descriptor = descriptor_pool.DescriptorPool(database).FindServiceByName(name)
        self.messages = {}
        self._add(self.descriptor.file)

    def _add(self, file):
        for imported in file.dependencies:
            self._add(imported)
        pending = list(file.message_types_by_name.values())
        for found in pending:
            self.messages[found.full_name] = message_factory.GetMessageClass(found)
            pending += found.nested_types


def known(name, database):
    """A service, from whichever server was asked first."""
    with _lock:
        if name not in _services:
            _services[name] = Service(name, database)
        return _services[name]


class Client:
    """Calls one service by the names of its methods."""

    def __init__(self, address, service="imagegate.v1.RouterService"):
        self.channel = grpc.insecure_channel(address, options=MESSAGES)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        found = known(service, self.database)
        self.service, self.messages = found.descriptor, found.messages

    def request(self, method, **fields):
        """A method's request, from plain values."""
        message = self.messages[self.service.FindMethodByName(method).input_type.full_name]()
        if fields:
            fill(message.image, fields)
        return message

    def call(self, method, request, key=TEAM_KEY, metadata=(), timeout=30, with_call=False):
        """Calls a method. The metadata are the HTTP headers."""
        found = self.service.FindMethodByName(method)
        answer = self.messages[found.output_type.full_name]
        make = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        stub = make(
            f"/{self.service.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        metadata = [*metadata] + ([("x-portkey-api-key", key)] if key else [])
        if with_call:
            return stub.with_call(request, metadata=metadata, timeout=timeout)
        return stub(request, metadata=metadata, timeout=timeout)

    def details(self, error):
        """The details of a failed call, by their message's short name."""
        found = {}
        for any_message in rpc_status.from_call(error).details:
            name = any_message.type_url.rsplit("/")[-1]
            common = getattr(error_details_pb2, name.rsplit(".")[-1], None) if name.startswith("google.rpc.") else None
            message = (common or self.messages[name])()
            any_message.Unpack(message)
            found[name.rsplit(".")[-1]] = message
        return found

    def close(self):
        self.channel.close()


class Admin(Client):
    """Calls AdminService: `admin.ask("GetConfig", slug="pc-hero")`."""

    def __init__(self, gateway, key=OPS_KEY):
        super().__init__(gateway.grpc, "imagegate.v1.AdminService")
        self.key = key

    def ask(self, method, timeout=10, **fields):
        message = self.messages[self.service.FindMethodByName(method).input_type.full_name]
        return self.call(method, message(**fields), key=self.key, timeout=timeout)

    def refusal(self, method, **fields):
        """The error that the call must end with: HTTP status and code."""
        try:
            answer = self.ask(method, **fields)
        except grpc.RpcError as error:
            found = self.details(error).get("ErrorDetail")
            assert found is not None, f"{method} failed without details: {error}"
            return found.status, found.code
        raise AssertionError(f"{method} {fields} was answered: {answer}")

    def requests(self, **filter):
        """The log, all pages of it."""
        found, token = [], ""
        while True:
            page = self.ask("ListRequests", filter=filter, page_size=1000, page_token=token)
            found += page.requests
            token = page.next_page_token
            if not token:
                return found


def fill(message, fields):
    for name, value in fields.items():
        if isinstance(value, dict):
            fill(getattr(message, name), value)
        elif isinstance(value, list):
            for entry in value:
                fill(getattr(message, name).add(), entry)
        else:
            setattr(message, name, value)
