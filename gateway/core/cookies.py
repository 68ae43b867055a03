"""Cookies of a request (RFC 6265 §4.2.1): pairs behind semicolons, in one field or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from .memo import Memo


def cookies(fields: Sequence[bytes], name: bytes) -> list[bytes]:
    """Every value under `name` (its case counts, RFC 6265 §5.3) in these `Cookie` fields, as it was sent, quotes
    included. A pair without `=` has no name."""
    found: list[bytes] = []
    for field in fields:
        for pair in field.split(b";"):
            key, equals, value = pair.strip(b" \t").partition(b"=")
            if equals and key.strip(b" \t") == name:
                found.append(value.strip(b" \t"))
    return found


# ── Cookies that do not say who sends a request ───────────────────────────────────────────────────

#: Cookies that load balancers, bot filters and analytics set, and change from one response to the next. A name that
#: ends in `*` is a prefix. A cookie stands here only if no product uses its name for a login: `AWSELB*` would include
#: `AWSELBAuthSessionCookie-0`, and `NSC_*` would include `NSC_AAAC`, and these are credentials.
INFRASTRUCTURE = (
    # Load balancers, and platforms that route a client to the same instance
    "AWSALB",  # AWS: Application Load Balancer
    "AWSALBAPP-*",
    "AWSALBCORS",
    "AWSALBTG",
    "AWSALBTGCORS",
    "AWSELB",  # AWS: Classic Load Balancer
    "AWSELBCORS",
    "ARRAffinity",  # Azure: App Service
    "ARRAffinitySameSite",
    "TiPMix",
    "x-ms-routing-name",
    "AGCAffinity",  # Azure: Application Gateway for Containers
    "ASLBSA",  # Azure: Front Door
    "ASLBSACORS",
    "ApplicationGatewayAffinity*",  # Azure: Application Gateway
    "GAESA",  # Google: App Engine
    "GCILB",  # Google: Cloud Load Balancing
    "GCLB",
    "DO-LB",  # DigitalOcean
    "X-Oracle-BMC-LBS-Route",  # Oracle Cloud
    "fly-machine-id",  # Fly.io
    "heroku-session-affinity",  # Heroku
    "tgw_l7_route",  # Tencent Cloud
    "__cflb",  # Cloudflare
    "BIGipServer*",  # F5 BIG-IP
    "INGRESSCOOKIE",  # ingress-nginx
    "ROUTEID",  # Apache httpd
    "SERVERID",  # HAProxy, Alibaba Cloud
    "SERVERUSED",
    "akaalb_*",  # Akamai
    # Bot filters, web application firewalls, waiting rooms
    "__cf_bm",  # Cloudflare
    "__cfruid",
    "__cfseq*",
    "__cfwaitingroom*",
    "_cfuvid",
    "cf_chl_*",
    "cf_clearance",
    "cf_ob_info",
    "cf_use_ob",
    "incap_ses_*",  # Imperva
    "nlbi_*",
    "reese84",
    "visid_incap_*",
    "AKA_A2",  # Akamai
    "_abck",
    "ak_bmsc",
    "bm_lso",
    "bm_mi",
    "bm_s",
    "bm_so",
    "bm_ss",
    "bm_sv",
    "bm_sz",
    "sbsd",
    "sbsd_*",
    "sec_cpt",
    "aws-waf-token",  # AWS WAF
    "acw_sc__*",  # Alibaba Cloud
    "acw_tc",
    "datadome",  # DataDome
    "_px2",  # HUMAN (PerimeterX)
    "_px3",
    "_pxde",
    "_pxhd",
    "_pxvid",
    "pxcts",
    "TS01*",  # F5 Advanced WAF
    "TSPD_101",
    "rbzid",  # Reblaze
    "rbzsessionid",
    # Analytics and consent, which scripts of the page change with each event. Identifiers of a visitor, which stay the
    # same (`_ga`, `_fbp`), are not listed: they tell two visitors without a session apart.
    "_ga_*",  # Google
    "_gat*",
    "__utma",
    "__utmb",
    "__utmt*",
    "_clsk",  # Microsoft
    "_uetsid",
    "_hjSession_*",  # Hotjar
    "_pk_ses*",  # Matomo
    "_dd_s",  # Datadog
    "__hssc",  # HubSpot
    "__hstc",
    "OptanonConsent",  # OneTrust
)


@lru_cache(maxsize=64)
def telling(names: tuple[str, ...]) -> Callable[[Sequence[bytes]], list[bytes]]:
    """Return what takes the cookies of INFRASTRUCTURE, and of `names` besides, out of `Cookie` fields. A field that
    had no others is left out."""
    listed = [name.encode("latin-1") for name in (*INFRASTRUCTURE, *names)]
    exact = frozenset(name for name in listed if not name.endswith(b"*"))
    prefixes = tuple(name[:-1] for name in listed if name.endswith(b"*"))

    def named(name: bytes) -> bool:
        return name in exact or name.startswith(prefixes)

    remembered = Memo(named, 1024, lambda name: len(name) <= 128)

    def left_out(pair: bytes) -> bool:
        name, equals, _ = pair.partition(b"=")
        return bool(equals) and remembered[name.rstrip(b" \t")]

    def told(fields: Sequence[bytes]) -> list[bytes]:
        found: list[bytes] = []
        for field in fields:
            pairs = [pair.strip(b" \t") for pair in field.rstrip(b"; \t").split(b";")]
            kept = [pair for pair in pairs if not left_out(pair)]
            if kept:
                found.append(b"; ".join(kept))
        return found

    return told
