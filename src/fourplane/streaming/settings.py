"""What an operator may set about streaming, with every bound in one place."""

from pathlib import Path

import msgspec


class EncodingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a source becomes renditions."""

    preset: str = "veryfast"
    video_codec: str = "h264"  # or av1
    audio_codec: str = "aac"  # or opus
    per_title: bool = True  # look at samples of the film (VMAF) to choose its rungs
    per_title_from_s: float = 30.0  # a shorter film is encoded at the fixed ladder before it could be judged
    rungs_max: int = 5
    height_max: int = 2160
    segment_s: float = 2.0
    audio_kbps: int = 128
    duration_s_max: float = 0.0  # encode only the first seconds; 0 = all
    source_bytes_max: int = 64 << 30
    jobs_max: int = 100  # waiting imports
    threads: int = 0  # of x264; 0 = ffmpeg decides
    nice: int = 10


class CdnSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One cache node of the tree: `parent` empty means it fills from the origin."""

    id: str
    port: int
    region: str
    parent: str = ""
    bytes_max: int = 2 << 30
    prefixes: tuple[str, ...] = ()  # the addresses of an ISP's subscribers, such as 203.0.113.0/24


TREE = (
    CdnSettings("EDGE1", 8101, "us"),
    CdnSettings("EDGE2", 8102, "eu"),
    CdnSettings("EDGE3", 8103, "asia"),
    CdnSettings("ISP1", 8104, "us", "EDGE1", 1000 << 20),
    CdnSettings("ISP2", 8105, "us", "EDGE1", 800 << 20),
    CdnSettings("ISP3", 8106, "eu", "EDGE2", 1200 << 20),
)


class FillSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When nodes are filled ahead, and how much may move: hours are UTC."""

    from_hour: int = 2
    to_hour: int = 6
    bytes_max: int = 4 << 30  # a night
    bytes_per_s: int = 20 << 20


class StreamingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ports, bounds and times of the streaming system; port 0 takes any free one."""

    ffmpeg: str = ""  # empty: the imageio-ffmpeg wheel, then PATH
    host: str = "127.0.0.1"
    public_host: str = ""  # what players are told; empty: the host they asked
    origin_port: int = 8100
    cdn: tuple[CdnSettings, ...] = TREE
    cdn_port: int | None = None  # of the first node, the others follow; 0: all take free ones; unset: as the nodes say
    folder: Path = Path("streaming")  # uploads and work of running encodes; relative to the data folder
    cache_folder: Path | None = Path("cdn")  # the same; None keeps cached bytes in memory
    congestion: str = "auto"  # towards viewers: bbr, cubic, ...; auto: the system's, without pacing on loopback
    token_s: float = 4 * 3600.0
    encoding: EncodingSettings = EncodingSettings()
    fill: FillSettings = FillSettings()
    upload_bytes_max: int = 16 << 30
    upload_chunk_max: int = 8 << 20
    uploads_max: int = 20
    sessions_max: int = 100_000  # playback sessions watched for quality
    session_idle_s: float = 120.0
    streams_per_viewer_max: int = 4
    steering_ttl_s: int = 10
    evacuation_grace_s: float = 25.0  # an evacuated region still serves who has not moved yet, then refuses
    cost_per_gb: float = 0.02

    def tree(self) -> tuple[CdnSettings, ...]:
        """The nodes with the ports they are to listen on."""
        first = self.cdn_port
        if first is None:
            return self.cdn
        ports = [first + number if first else 0 for number in range(len(self.cdn))]
        return tuple(msgspec.structs.replace(node, port=port) for node, port in zip(self.cdn, ports, strict=True))
