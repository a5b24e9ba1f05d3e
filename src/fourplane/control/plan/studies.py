"""The case studies' own tables of cost and scale, to be read beside a plan. Facts of the studies, in their words."""

from fourplane.control.plan.demand import System

USERS: dict[System, int] = {
    "streaming": 200_000_000,
    "dispatch": 100_000_000,
    "commerce": 300_000_000,
    "messaging": 2_000_000_000,
}
# component, technology, scale, cost a month, promise
ROWS: dict[System, tuple[tuple[str, str, str, str, str], ...]] = {
    "streaming": (
        ("CDN", "Open Connect", "45 locations", "$15M", "99.95 %"),
        ("Compute", "AWS EC2", "100K+ instances", "$25M", "99.9 %"),
        ("Storage", "AWS S3", "100PB+ content", "$5M", "99.99 %"),
        ("Database", "Cassandra", "1000+ nodes", "$3M", "99.95 %"),
        ("Monitoring", "Atlas", "2M+ metrics/sec", "$1M", "99.9 %"),
    ),
    "dispatch": (
        ("Matching", "Go Services", "1M matches/hour", "$2M", "<3s p99"),
        ("Location", "C++ Services", "10M updates/sec", "$5M", "<50ms p99"),
        ("Database", "Cassandra", "500TB data", "$1.5M", "<10ms read"),
        ("Cache", "Redis Cluster", "100TB memory", "$800K", "<1ms p99"),
        ("CDN", "CloudFlare", "50 regions", "$500K", "<100ms p99"),
    ),
    "commerce": (
        ("CDN", "CloudFront", "400+ locations", "$50M", "99.99 %"),
        ("Compute", "EC2 + Lambda", "1M+ instances", "$200M", "99.9 %"),
        ("Database", "DynamoDB", "100TB+", "$30M", "99.99 %"),
        ("Storage", "S3", "1000PB+", "$20M", "99.999 %"),
        ("Analytics", "Redshift", "100PB warehouse", "$10M", "99.9 %"),
    ),
    "messaging": (
        ("Servers", "FreeBSD", "1200 servers", "$2M", "<50ms p99"),
        ("Connections", "Erlang/OTP", "2B concurrent", "$500K", "<10ms local"),
        ("Storage", "Custom", "1PB messages", "$200K", "<1ms write"),
        ("Bandwidth", "Global ISPs", "100Gbps peak", "$1M", "Regional"),
        ("Team", "Engineers", "50 people", "$800K", "24/7 support"),
    ),
}
