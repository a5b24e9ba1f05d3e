"""Every box of the study's diagrams is there, once, and answers."""

import asyncio

from tests.journeys.streaming.rig import house

BOXES = """
CDN_US CDN_EU CDN_ASIA AWS_CF API_GW USER_SVC REC_SVC STREAM_SVC BILLING_SVC CASSANDRA MYSQL ES S3 ATLAS SPINNAKER EUREKA HYSTRIX
STUDIO ENCODING CDN_ORIGIN ISP1 ISP2 ISP3 EDGE1 EDGE2 EDGE3 LATENCY REBUFFER QUALITY COST
MONKEY GORILLA KONG AZ1 AZ2 AZ3 REGION_US REGION_EU ALERT RUNBOOK ROLLBACK DASHBOARD
""".split()


def test_every_box_stands_once_and_has_figures(tmp_path):
    async def main():
        async with house(tmp_path) as here:
            nodes = here.streaming.nodes()
            assert sorted(node.id for node in nodes) == sorted(BOXES)
            assert all(node.figures().errors == 0 for node in nodes)
            assert all(node.source or not node.built for node in nodes)
            assert here.streaming.statistics().quality.sessions == 0

    asyncio.run(main())


def test_a_stopped_region_is_left_out_of_steering(tmp_path):
    async def main():
        async with house(tmp_path) as here:
            region = next(node for node in here.streaming.nodes() if node.id == "REGION_US")
            assert here.rooms.playback.order("viewer", "us")[0] == "EDGE1"
            region.switch.on = False
            assert here.rooms.playback.order("viewer", "us")[0] == "EDGE2"
            assert here.rooms.playback.steering("none")["PATHWAY-PRIORITY"]

    asyncio.run(main())
