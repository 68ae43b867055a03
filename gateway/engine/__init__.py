"""The record protocol as one state machine per key and process, without I/O.

request      a guarded request and its client, as the machine sees them
acquisition  the phases in which a key is claimed, taken over or watched
run          one run of a request
exchange     the phases in which its one request runs and is settled
machine      the rules that hold in every phase
io           what a machine calls
driver       what it calls, made of a store, upstreams, timers and clients; and the table of machines
"""
