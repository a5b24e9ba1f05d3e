"""A clip worth looking at, drawn by ffmpeg: the first title of a deployment where no film is at hand."""

from pathlib import Path

from fourplane.streaming.ffmpeg import EncodeFailed, Ffmpeg

CHORD = ((220.0, 7), (277.18, 5), (329.63, 9))  # hertz and the seconds in which each note swells


async def generate_clip(ffmpeg: Ffmpeg, file: Path, *, duration_s: float = 20.0, size: str = "1280x720") -> None:
    """Slow colours, a living automaton, a title, a clock and a chord: a first title where no film is at hand."""
    usable = (ffmpeg.filters, ffmpeg.filters - {"drawtext"}, frozenset[str]())  # drawtext needs a font, too
    for number, filters in enumerate(usable):
        arguments = [
            *clip_inputs(filters, duration_s, size),
            *("-t", f"{duration_s:g}", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-g", "48"),
            *("-c:a", "aac", "-b:a", "96k", "-ac", "2", "-f", "mp4", str(file)),
        ]
        try:
            await ffmpeg.run(arguments)
        except EncodeFailed as error:
            if error.reason == "disk_full" or number == len(usable) - 1:
                raise
        else:
            return


def clip_inputs(filters: frozenset[str], duration_s: float, size: str) -> list[str]:
    """Ffmpeg's arguments up to the encoder: the best picture that these filters can draw."""
    width, height = (int(side) for side in size.split("x"))
    chord = "+".join(f"0.12*sin(2*PI*{hertz}*t)*(0.6+0.4*sin(2*PI*t/{beat}))" for hertz, beat in CHORD)
    sound = ["-f", "lavfi", "-i", f"aevalsrc='{chord}':s=48000:d={duration_s:g}"]
    if "gradients" not in filters:
        return ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate=24", *sound]
    colours = "c0=0x0b1d51:c1=0x7b2d8b:c2=0xff6f61:c3=0x1f7a8c"
    sky = f"gradients=size={width // 4}x{height // 4}:rate=24:n=4:speed=0.012:{colours}:duration={duration_s:g}"
    smooth = f"[0:v]scale={width}:{height}:flags=bilinear,setsar=1,format=yuv420p[sky]"  # drawn small: a sixteenth of the time
    inputs, graph, last = ["-f", "lavfi", "-i", sky], smooth, "sky"
    if "life" in filters:
        cells = f"life=size={width // 8}x{height // 8}:rate=12:mold=12:life_color=white:death_color=0x8fd3fe:ratio=0.12:seed=7"
        inputs += ["-f", "lavfi", "-i", cells]
        scaled = f"[1:v]fps=24,scale={width}:{height}:flags=neighbor,setsar=1,format=yuv420p[cells]"
        graph += f";{scaled};[sky][cells]blend=all_mode=screen:all_opacity=0.45[alive]"
        last = "alive"
    if "drawtext" in filters:
        title = f"drawtext=text='Fourplane':fontcolor=white:fontsize={height // 8}:x=(w-tw)/2:y=h*0.38"
        time = f"drawtext=text='%{{pts\\:hms}}':fontcolor=white@0.8:fontsize={height // 18}:x=(w-tw)/2:y=h*0.56"
        graph += f";[{last}]{title},{time}[named]"
        last = "named"
    number = 2 if "life" in filters else 1
    return [*inputs, *sound, "-filter_complex", graph, "-map", f"[{last}]", "-map", f"{number}:a"]
