"""What players say of themselves in the query of a media address is heard, and garbage is not."""

from urllib.parse import quote

from fourplane.streaming.cmcd import Cmcd


def test_stalls_rates_and_throughput_are_counted():
    heard = Cmcd()
    heard.hear(b"CMCD=" + quote('br=3000,bs,mtp=25000,ot=v,sf=h,sid="x",su').encode())
    heard.hear(b"a=1&CMCD=" + quote("br=1000,mtp=5000").encode() + b"&b=2")
    seen = heard.statistics()
    assert (seen.requests, seen.starved) == (2, 1)
    assert (seen.mean_kbps, seen.mean_throughput_kbps) == (2000.0, 15000.0)


def test_garbage_counts_for_nothing():
    heard = Cmcd()
    for query in (b"CMCD=" + b"x" * 5_000, b"CMCD=%ff%00br=,mtp=abc", b"CMCD="):
        heard.hear(query)
    assert heard.statistics().mean_kbps == 0.0
    assert heard.statistics().starved == 0
