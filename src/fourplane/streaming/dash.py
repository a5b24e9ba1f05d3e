"""The DASH manifest (ISO/IEC 23009-1, static) over the same segments as HLS.

Segment times come from the index as a SegmentTimeline, so picture and sound of unequal length are stated as they are. The
profile is isoff-live; with texts, each of them one file, it is isoff-main, because isoff-live knows nothing but templates.
"""

from xml.sax.saxutils import escape, quoteattr

from fourplane.streaming.captions import language_tag
from fourplane.streaming.packaging import TitleIndex, Track


def manifest(index: TitleIndex, *, steering_uri: str = "", pathways: tuple[tuple[str, str], ...] = ()) -> str:
    """The MPD of a title version; `pathways` are (service location, base address) pairs for content steering."""
    longest = max(seg.duration / track.timescale for track in index.tracks for seg in track.segments)
    profile = "isoff-main" if index.captions else "isoff-live"
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:'
        f'{profile}:2011" type="static" '
        f'mediaPresentationDuration="{_time(index.duration_s)}" maxSegmentDuration="{_time(longest + 0.001)}" '
        f'minBufferTime="PT{max(2, index.target_s)}S">\n'
    )
    parts = [head, *_places(steering_uri, pathways), '<Period id="0" start="PT0S">\n']
    if index.video:
        top = index.video[-1]
        parts.append(
            f'<AdaptationSet id="1" contentType="video" mimeType="video/mp4" segmentAlignment="true" startWithSAP="1" '
            f'maxWidth="{top.width}" maxHeight="{top.height}" maxFrameRate="{_rate(top)}" par="{_shape(top)}">\n'
            '<Role schemeIdUri="urn:mpeg:dash:role:2011" value="main"/>\n'
        )
        parts += [_picture(index, track) for track in index.video]
        parts.append("</AdaptationSet>\n")
    for number, track in enumerate(index.audio):
        known = track.language and not track.language.startswith("track")
        language = f" lang={quoteattr(language_tag(track.language))}" if known else ""
        role = "main" if number == 0 else "alternate"
        parts.append(
            f'<AdaptationSet id="{number + 2}" contentType="audio" mimeType="audio/mp4" segmentAlignment="true" '
            f'startWithSAP="1"{language}>\n<Role schemeIdUri="urn:mpeg:dash:role:2011" value="{role}"/>\n'
            f'<Representation id="{track.name}" codecs="{track.codec}" bandwidth="{track.peak_bps(index.target_s)}" '
            f'audioSamplingRate="{track.sample_rate}">\n'
            '<AudioChannelConfiguration schemeIdUri="urn:mpeg:dash:23003:3:audio_channel_configuration:2011" '
            f'value="{track.channels}"/>\n{_template(track)}</Representation>\n</AdaptationSet>\n'
        )
    for number, caption in enumerate(index.captions, len(index.audio) + 2):
        parts.append(
            f'<AdaptationSet id="{number}" contentType="text" mimeType="text/vtt" lang={quoteattr(caption.language)}>\n'
            '<Role schemeIdUri="urn:mpeg:dash:role:2011" value="subtitle"/>\n'
            f'<Representation id="{caption.name}" bandwidth="1000">\n<BaseURL>{caption.name}.vtt</BaseURL>\n'
            "</Representation>\n</AdaptationSet>\n"
        )
    return "".join([*parts, "</Period>\n</MPD>\n"])


def _places(steering_uri: str, pathways: tuple[tuple[str, str], ...]) -> list[str]:
    lines = [f"<BaseURL serviceLocation={quoteattr(name)}>{escape(address)}</BaseURL>\n" for name, address in pathways]
    if steering_uri and pathways:
        usual = quoteattr(pathways[0][0])
        lines.append(
            f'<ContentSteering defaultServiceLocation={usual} queryBeforeStart="false">{escape(steering_uri)}'
            "</ContentSteering>\n"
        )
    return lines


def _picture(index: TitleIndex, track: Track) -> str:
    return (
        f'<Representation id="{track.name}" codecs="{track.codec}" bandwidth="{track.peak_bps(index.target_s)}" '
        f'width="{track.width}" height="{track.height}" frameRate="{_rate(track)}" sar="1:1">\n'
        f"{_template(track)}</Representation>\n"
    )


def _template(track: Track) -> str:
    lines: list[list[int]] = []
    for segment in track.segments:
        if lines and lines[-1][0] == segment.duration:
            lines[-1][1] += 1
        else:
            lines.append([segment.duration, 0])
    runs = "".join(
        f'<S{" t=" + chr(34) + "0" + chr(34) if not at else ""} d="{duration}"{f" r={chr(34)}{more}{chr(34)}" if more else ""}/>'
        for at, (duration, more) in enumerate(lines)
    )
    return (
        f'<SegmentTemplate timescale="{track.timescale}" initialization="$RepresentationID$/init.mp4" '
        f'media="$RepresentationID$/$Number$.m4s" startNumber="0"><SegmentTimeline>{runs}</SegmentTimeline>'
        "</SegmentTemplate>\n"
    )


def _time(seconds: float) -> str:
    return f"PT{seconds:.3f}S"


def _rate(track: Track) -> str:
    return f"{round(track.fps * 1001)}/1001" if abs(track.fps - round(track.fps)) > 1e-3 else str(round(track.fps))


def _shape(track: Track) -> str:
    for wide, high in ((16, 9), (9, 16), (4, 3), (21, 9), (1, 1)):
        if abs(track.width * high - track.height * wide) < 0.02 * track.height * wide:
            return f"{wide}:{high}"
    return f"{track.width}:{track.height}"
