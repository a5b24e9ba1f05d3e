"""Every bound and choice of the messaging system, in one frozen struct."""

import msgspec


class MessagingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator may decide. Sizes in bytes, times in seconds."""

    domains: tuple[str, ...] = ("localhost",)  # the first one is the home of new accounts
    host: str = "127.0.0.1"
    port: int = 5222  # STARTTLS
    tls_port: int = 5223  # TLS from the first byte
    web_address: str = "http://localhost:8000"  # where clients reach the gateway, for uploaded files
    tls_required: bool = True  # no password is taken before TLS; PLAIN never is

    registration: bool = False  # anybody may make an account: in the web client and by XEP-0077

    stanza_max: int = 256 * 1024  # advertised (XEP-0478); 16 KiB before login
    stanza_max_before_login: int = 16 * 1024
    depth_max: int = 64
    attributes_max: int = 64
    login_s: float = 60.0  # from connecting to a bound resource
    fast_s: float = 14 * 86_400.0  # how long a token for quick logins (XEP-0484) lives
    credentials_s: float = 5.0  # how long keys and tokens are remembered, and a changed password may go unnoticed
    credentials_max: int = 100_000
    login_attempts_max: int = 5
    sessions_per_user_max: int = 20
    sessions_max: int = 200_000
    address_connections_max: int = 2_000  # from one network address; 0 sets no bound. Loopback is the machine itself

    no_delay: bool = True  # TCP_NODELAY: a stanza leaves at once
    socket_buffer: int = 0  # SO_SNDBUF and SO_RCVBUF of every connection; 0 lets the kernel grow them as needed
    compression: int = 0  # XEP-0138, a risk (stream_compression.py): zlib's level for clients that ask; 0 offers none
    keepalive_idle_s: int = 300  # TCP keepalive: first probe of a silent peer; 0 sends none
    keepalive_interval_s: int = 30
    keepalive_count: int = 4
    write_high: int = 256 * 1024  # bytes waiting for a slow reader before its senders are paused
    stalled_s: float = 30.0  # how long a reader may stay over `write_high`
    mailbox_max: int = 1_000  # stanzas waiting for one user who is being loaded

    roster_max: int = 1_000
    offline_max: int = 1_000  # per user; then the sender is told
    offline_s: float = 30 * 86_400.0
    users_in_memory_max: int = 100_000  # users without a session stay loaded up to this many

    resume_s: float = 300.0  # how long a broken session may be resumed (XEP-0198)
    unacked_max: int = 1_000  # stanzas a session may owe an acknowledgement

    archive: bool = True  # XEP-0313
    archive_s: float = 365 * 86_400.0
    rooms_max: int = 10_000
    room_occupants_max: int = 1_000
    room_history_max: int = 50
    upload_max: int = 32 * 1024 * 1024
    upload_s: float = 30 * 86_400.0
    pep_nodes_max: int = 200  # nodes a person may publish to (XEP-0163)
    pep_items_max: int = 500  # items kept of each
    pep_item_max: int = 128 * 1024
    vcard_max: int = 128 * 1024
    private_max: int = 64 * 1024
    blocked_max: int = 1_000
