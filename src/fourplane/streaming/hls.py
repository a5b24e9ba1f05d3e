"""HLS playlists (RFC 8216bis, version 7, CMAF segments) written from the index of a title.

BANDWIDTH is the measured peak and AVERAGE-BANDWIDTH the measured mean of picture plus the loudest sound, as the RFC
defines them, not the encoder's wish. Rungs are listed from the smallest, so that a player starts fast. Sound is a group
of its own; every rung has an I-frame playlist for scrubbing, whose entries are byte ranges of the same segments.
"""

from collections.abc import Sequence

from fourplane.streaming.captions import PIECE_S, language_name, language_tag
from fourplane.streaming.packaging import Caption, TitleIndex, Track

HEAD = "#EXTM3U\n#EXT-X-VERSION:7\n"


def master(index: TitleIndex, *, steering_uri: str = "", pathways: tuple[tuple[str, str], ...] = (("", ""),)) -> str:
    """The multivariant playlist; `pathways` are (id, URI prefix) pairs for content steering."""
    lines = [HEAD + "#EXT-X-INDEPENDENT-SEGMENTS"]
    if steering_uri:
        lines.append(f'#EXT-X-CONTENT-STEERING:SERVER-URI="{steering_uri}",PATHWAY-ID="{pathways[0][0]}"')
    for pathway, prefix in pathways:
        heard = zip(index.audio, names([track.language for track in index.audio], "Sound"), strict=True)
        lines += [_sound(track, name, prefix, pathway, first=not at) for at, (track, name) in enumerate(heard)]
        written = zip(index.captions, names([one.language for one in index.captions], "Text"), strict=True)
        lines += [_caption(caption, name, prefix, pathway) for caption, name in written]
    for pathway, prefix in pathways:
        for track in index.video:
            lines += [_variant(index, track, pathway), f"{prefix}{track.name}.m3u8"]
    for pathway, prefix in pathways:
        lines += [_key_frames(track, prefix, pathway) for track in index.video]
    return "\n".join(lines) + "\n"


def media(index: TitleIndex, track: Track) -> str:
    """The playlist of one track."""
    lines = [
        f"{HEAD}#EXT-X-TARGETDURATION:{index.target_s}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{track.name}/init.mp4"',
    ]
    for number, segment in enumerate(track.segments):
        lines += [f"#EXTINF:{segment.duration / track.timescale:.6f},", f"{track.name}/{number}.m4s"]
    return "\n".join([*lines, "#EXT-X-ENDLIST\n"])


def key_frames(index: TitleIndex, track: Track) -> str:
    """The I-frame playlist of one rung: the first picture of every segment by byte range."""
    lines = [
        f"{HEAD}#EXT-X-TARGETDURATION:{index.target_s}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        "#EXT-X-I-FRAMES-ONLY",
        f'#EXT-X-MAP:URI="{track.name}/init.mp4"',
    ]
    for number, segment in enumerate(track.segments):
        lines += [
            f"#EXTINF:{segment.duration / track.timescale:.6f},",
            f"#EXT-X-BYTERANGE:{segment.key_size}@0",
            f"{track.name}/{number}.m4s",
        ]
    return "\n".join([*lines, "#EXT-X-ENDLIST\n"])


def captions(index: TitleIndex, caption: Caption) -> str:
    """The playlist of one text track: WebVTT in pieces of one length."""
    count = max(1, -int(-index.duration_s // PIECE_S))
    lines = [f"{HEAD}#EXT-X-TARGETDURATION:{int(PIECE_S)}", "#EXT-X-MEDIA-SEQUENCE:0", "#EXT-X-PLAYLIST-TYPE:VOD"]
    for number in range(count):
        left_s = max(0.001, min(PIECE_S, index.duration_s - number * PIECE_S))
        lines += [f"#EXTINF:{left_s:.3f},", f"{caption.name}/{number}.vtt"]
    return "\n".join([*lines, "#EXT-X-ENDLIST\n"])


def names(languages: Sequence[str], usual: str) -> list[str]:
    """What people read of tracks in these languages: no name twice, as a group of renditions demands."""
    found: list[str] = []
    for language in languages:
        name = language_name(language) if language and not language.startswith("track") else usual
        same = sum(1 for other in found if other == name or other.startswith(f"{name} ("))
        found.append(f"{name} ({same + 1})" if same else name)
    return found


def _sound(track: Track, name: str, prefix: str, pathway: str, *, first: bool) -> str:
    choice = "YES" if first else "NO"
    known = bool(track.language) and not track.language.startswith("track")
    language = f'LANGUAGE="{language_tag(track.language)}",' if known else ""
    return (
        f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="{_group(pathway)}",NAME="{name}",{language}DEFAULT={choice},'
        f'AUTOSELECT=YES,CHANNELS="{track.channels}",URI="{prefix}{track.name}.m3u8"'
    )


def _caption(caption: Caption, name: str, prefix: str, pathway: str) -> str:
    return (
        f'#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="{_texts(pathway)}",NAME="{name}",LANGUAGE="{caption.language}",'
        f'DEFAULT=NO,AUTOSELECT=YES,FORCED=NO,URI="{prefix}{caption.name}.m3u8"'
    )


def _variant(index: TitleIndex, track: Track, pathway: str) -> str:
    sounds = index.audio
    peak = track.peak_bps(index.target_s) + max((sound.peak_bps(index.target_s) for sound in sounds), default=0)
    mean = track.average_bps() + max((sound.average_bps() for sound in sounds), default=0)
    codecs = ",".join(dict.fromkeys([track.codec, *(sound.codec for sound in sounds)]))
    line = (
        f'#EXT-X-STREAM-INF:BANDWIDTH={peak},AVERAGE-BANDWIDTH={mean},CODECS="{codecs}",'
        f"RESOLUTION={track.width}x{track.height},FRAME-RATE={track.fps:.3f}"
    )
    line += f',AUDIO="{_group(pathway)}"' if sounds else ""
    line += f',SUBTITLES="{_texts(pathway)}"' if index.captions else ""
    return line + (f',PATHWAY-ID="{pathway}"' if pathway else "")


def _key_frames(track: Track, prefix: str, pathway: str) -> str:
    rates = [
        8 * segment.key_size * track.timescale / segment.duration for segment in track.segments if segment.duration
    ]
    peak = round(max(rates) + 0.5)
    line = (
        f"#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH={peak},AVERAGE-BANDWIDTH={round(sum(rates) / len(rates))},"
        f'CODECS="{track.codec}",RESOLUTION={track.width}x{track.height},URI="{prefix}{track.name}.iframes.m3u8"'
    )
    return line + (f',PATHWAY-ID="{pathway}"' if pathway else "")


def _group(pathway: str) -> str:
    return f"sound-{pathway}" if pathway else "sound"


def _texts(pathway: str) -> str:
    return f"text-{pathway}" if pathway else "text"
