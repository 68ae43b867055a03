"""Tokens that prove whose key it is.

keys      the issuer's keys: fetched, kept, fetched anew
verify    one token: proven, or why not; what was proven is remembered for a while
issuers   all that a configuration trusts
"""
