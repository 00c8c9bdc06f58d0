"""
Every refusal of a Realtime server by name, word for word, for hooks that answer with it.

```python
server.on_connect = lambda request: refusals.Handshake.TENANT_NOT_FOUND()
server.on_join = lambda topic, payload, connection: refusals.Join.QUERY_CANCELED(error="57014")
server.on_request = lambda request: refusals.Rest.TOO_MANY_REQUESTS()
server.shut_down("room", refusals.System.TOKEN_EXPIRED(seconds=3))
```

Calling a name gives what the hook returns; braces in the text are filled in by keyword. What the server is asked often
enough to refuse by itself needs none of this: see `ServerOptions` and `RealtimeServer.stop_database`. Source:
supabase/realtime 2.129, and Phoenix 1.8 for two of the joins.
"""

from __future__ import annotations

import enum
import json
from typing import Any

from rtpool.testing.records import JoinRefusal, Refusal

__all__ = ["Handshake", "Join", "Rest", "System", "body_of"]

_JSON = {"content-type": "application/json; charset=utf-8"}
_SIGNER = "Failed to generate JWT signer, check your JWT secret or JWKS configuration"
_SIGNER_OF = 'Failed to generate JWT signer for key ID (kid) "{kid}", check your JWT secret or JWKS configuration'
_CLAIMS = "Fields `role` and `exp` are required in JWT"
_NO_JWT = "The token provided is not a valid JWT"
_SIGNATURE = "Failed to validate JWT signature"
_EXPIRED = "Token has expired {seconds} seconds ago"
_UNABLE = "Realtime was unable to connect to the project database"
_NO_READ = "You do not have permissions to read from this Channel topic: {topic}"


def body_of(**fields: Any) -> str:
    """A JSON object as the server writes it."""
    return json.dumps(fields, separators=(",", ":"))


@enum.unique
class Handshake(enum.Enum):
    """Refusals of an upgrade: the status and the words."""

    API_KEY_MISSING = (401, "API key is missing")
    TOKEN_EXPIRED = (401, "Token has expired")
    CLAIMS_MISSING = (401, _CLAIMS)
    NO_JWT = (401, _NO_JWT)
    BAD_SIGNATURE = (401, _SIGNATURE)
    NO_SIGNER = (401, _SIGNER)
    NO_SIGNER_FOR_KEY = (401, _SIGNER_OF)
    TENANT_DISABLED = (403, "Realtime was disabled for this tenant")
    FORBIDDEN = (403, "")
    TENANT_NOT_FOUND = (404, "Tenant not found")
    TOO_MANY_USERS = (429, "Too many connected users")
    TOO_MANY_JOINS = (429, "Too many joins per second")
    CONNECT_ERROR = (500, "Error connecting to Realtime")

    def __call__(self, *, delay: float | None = None, **values: object) -> Refusal:
        """
        What `on_connect` returns.

        Args:
            delay: seconds to hold it back; None is the server's own back-off.
            values: what goes into the braces of the words.
        """
        status, words = self.value
        return Refusal(status, body_of(error=words.format(**values)) if words else "", delay=delay)


@enum.unique
class Join(enum.Enum):
    """Refusals of a join: the reason."""

    TOPIC_NAME_REQUIRED = "TopicNameRequired: You must provide a topic name"
    UNMATCHED_TOPIC = "unmatched topic"
    PRIVATE_ONLY = "PrivateOnly: This project only allows private channels"
    UNAUTHORIZED = f"Unauthorized: {_NO_READ}"
    TOKEN_EXPIRED = f"InvalidJWTToken: {_EXPIRED}"
    CLAIMS_MISSING = f"InvalidJWTToken: {_CLAIMS}"
    EXPIRATION_INVALID = "InvalidJWTToken: Token expiration time is invalid"
    NO_JWT = f"MalformedJWT: {_NO_JWT}"
    BAD_SIGNATURE = f"JwtSignatureError: {_SIGNATURE}"
    NO_SIGNER_FOR_KEY = f"JwtSignerError: {_SIGNER_OF}"
    NO_SIGNER = f"JwtSignerError: {_SIGNER}"
    TOO_MANY_CHANNELS = "ChannelRateLimitReached: Too many channels"
    TOO_MANY_USERS = "ConnectionRateLimitReached: Too many connected users"
    TOO_MANY_JOINS = "ClientJoinRateLimitReached: Too many joins per second"
    INCREASE_POOL = "IncreaseConnectionPool: Please increase your connection pool size"
    DATABASE_FULL = "DatabaseLackOfConnections: Database can't accept more connections, Realtime won't connect"
    DATABASE_RATE = "DatabaseConnectionRateLimitReached: Too many database connections attempts per second"
    UNABLE_TO_CONNECT = f"UnableToConnectToProject: {_UNABLE}"
    UNABLE_TO_SET_POLICIES = _UNABLE
    INITIALIZING = "InitializingProjectConnection: Realtime is initializing the project connection"
    CONNECTING = "InitializingProjectConnection: Connecting to the project database"
    QUERY_CANCELED = "QueryCanceled: {error}"
    MISSING_PARTITION = "MissingPartition: Realtime was unable to find the expected messages partition"
    RPC_TIMEOUT = "TimeoutOnRpcCall: Node request timeout"
    RPC_ERROR = "ErrorOnRpcCall: RPC call error: {term}"
    RESTARTING = "RealtimeRestarting: Realtime is restarting, please standby"
    MUSTER_ERROR = "MusterJoinError: {error}"
    TENANT_NOT_FOUND = "TenantNotFound: Tenant with the given ID does not exist"
    TENANT_DISABLED = "RealtimeDisabledForTenant: Realtime disabled for this tenant"
    REPLAY_INVALID = "UnableToReplayMessages: Replay params are not valid"
    REPLAY_ON_PUBLIC = "UnableToReplayMessages: Replay is not allowed for public channels"
    REPLAY_FAILED = "UnableToReplayMessages: Realtime was unable to replay messages"
    UNKNOWN = "Unknown Error on Channel"
    UNKNOWN_EXCEPTION = "UnknownErrorOnChannel: {error}"
    CRASHED = "join crashed"
    PHOENIX_TOO_MANY_CHANNELS = "too many channels joined"
    SUBSCRIBE_TIMEOUT = "PostgresChangesSubscribeTimeout: {error}"
    DISABLED_FOR_CONFIGURATION = "RealtimeDisabledForConfiguration: {error}"

    def __call__(self, *, delay: float | None = None, **values: object) -> JoinRefusal:
        """
        What `on_join` returns; two of them close the socket with 1001 as well.

        Args:
            delay: seconds to hold it back; None is the server's own back-off.
            values: what goes into the braces of the reason.
        """
        if self is Join.UNMATCHED_TOPIC and delay is None:
            delay = 0.0  # the router's, not the channel's: it has no back-off
        closes = self in (Join.TOO_MANY_JOINS, Join.TENANT_NOT_FOUND)
        return JoinRefusal(self.value.format(**values), delay, 1001 if closes else None)


@enum.unique
class System(enum.Enum):
    """What a channel is told, in a ``system`` message, before the server closes it."""

    TOKEN_EXPIRED = _EXPIRED
    CLAIMS_MISSING = _CLAIMS
    NO_JWT = _NO_JWT
    NO_SIGNER_FOR_KEY = _SIGNER_OF
    BAD_SIGNATURE = ":signature_error"
    NO_SIGNER = ":error_generating_signer"
    EXPIRY_PASSED = "{seconds}"
    NO_READ = _NO_READ
    NO_LONGER_READ = "You no longer have permission to read from this Channel topic: {topic}"
    TOO_MANY_MESSAGES = "Too many messages per second"
    TOO_MANY_PRESENCES = "Too many presence messages per second"
    CLIENT_PRESENCE_RATE = "Client presence rate limit exceeded"
    TRACK_TOO_LARGE = "Track message size exceeded"
    REPLICATION_LATE = "Replication connection was not established in time"
    UNABLE_TO_CONNECT = _UNABLE
    QUERY_CANCELED = "Query was cancelled, please try again"
    RPC_TIMEOUT = "Node request timeout"
    RPC_ERROR = "RPC call error: {term}"
    INITIALIZING = ":initializing"
    CONNECTING = ":tenant_database_connection_initializing"
    DATABASE_RATE = ":connect_rate_limit_reached"
    DATABASE_FULL = ":tenant_db_too_many_connections"
    INCREASE_POOL = ":increase_connection_pool"
    TENANT_SUSPENDED = ":tenant_suspended"

    def __call__(self, **values: object) -> str:
        """What `RealtimeServer.shut_down` says; `values` go into the braces of the words."""
        return str(self.value).format(**values)


@enum.unique
class Rest(enum.Enum):
    """Refusals of a REST call: the status and the words."""

    UNAUTHORIZED = (401, "Unauthorized")
    TENANT_NOT_FOUND = (401, "Tenant not found in database")
    SUSPENDED = (403, "Tenant is suspended")
    DENIED = (403, "Unauthorized")
    POLICY_ERROR = (422, "RLS policy error")
    QUERY_CANCELED = (422, "Query canceled")
    MISSING_PARTITION = (422, "Missing messages partition")
    DATABASE_UNAVAILABLE = (422, "Tenant database unavailable")
    INITIALIZING = (422, "Tenant database initializing")
    CONNECTING = (422, "Tenant database connection initializing")
    DATABASE_FULL = (422, "Tenant database has too many connections")
    DATABASE_RATE = (422, "Connect rate limit reached")
    TOO_MANY_REQUESTS = (429, "Too many requests")
    RATE_EXCEEDED = (429, "You have exceeded your rate limit")
    BATCH_TOO_LARGE = (429, "Too many messages to broadcast, please reduce the batch size")
    POOL_EXHAUSTED = (429, "Connection pool exhausted")
    RPC_ERROR = (500, "RPC error")
    UNABLE_TO_AUTHORIZE = (500, "Unable to authorize broadcast")

    def __call__(self, *, delay: float | None = None) -> Refusal:
        """What `on_request` returns; `delay` is seconds to hold it back."""
        status, words = self.value
        return Refusal(status, body_of(message=words), _JSON, delay)
