/* The durability `replicated`: one key, a primary, its replicas, and failovers. Untimed.
 *
 * N requests for one key, each in a gate of its own. Every node has a copy of the record; a replica copies that of the
 * node that it follows, whenever it likes, so that what it lacks is what was not acknowledged. Sentinels promote a
 * replica. The old primary goes on answering the gates that have not noticed, and keeps those replicas that were not
 * told yet. A gate has one connection to claim, look, hold and release over (`main`), and others for what must be with
 * the replicas (`lane`, with WAIT behind each write): either may lead to the old primary while the other does not.
 * The names are those of gateway/stores/redis/.
 *
 * The record's own protocol is record.pml's, and its rules are not played again here. -DWITHOUT_X takes rule X away.
 *
 * Replicas: R (1 or 2). What may go wrong, and how often (-D…=n):
 *   FAILOVERS  CRASHES a gate dies   LOSSES a reply, or a command and its reply, is lost
 * -DCUT: the old primary is cut off for good, and an empty server takes its place. -DRERUN: on_doubt is rerun.
 * Outside of the promise, and shown to be: -DHASTY a replica is promoted that has not caught up with the last failover;
 * -DEMPTIED a primary is restarted without its data, before another was promoted; -DCLOCKS the promoted server's clock
 * is ahead of the old one's.
 */
#ifndef N
#define N 2
#endif
#ifndef R
#define R 1
#endif
#ifndef H
#define H (N+1)
#endif
#ifndef FAILOVERS
#define FAILOVERS 1
#endif
#ifndef CRASHES
#define CRASHES 0
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifdef RERUN
#define MOST 2
#else
#define MOST 1
#endif
#define SLOTS 6                     /* holders are 1 … 5; 0 is nobody */
#ifdef CUT
#define NODES (R+2)                 /* the last one is the empty server */
#else
#define NODES (R+1)
#endif
#ifdef WITHOUT_ALL_REPLICAS
#define NEED (R-1)
#else
#define NEED R
#endif

#define ABSENT 0
#define IN_FLIGHT 1
#define COMPLETED 2
#define IN_DOUBT 3
#define KEEP 1
#define HOLD 2
#define RELEASE 3

/* by node: its record, whom it follows (itself: it takes writes), and whether it has caught up with that one */
byte state[4], holder[4], attempt[4], follows[4];
bool in_step[4];
byte primary;                       /* as the Sentinels have it */
/* by gate: the servers that its connections lead to */
byte main[N], lane[N];
/* by holder: its attempt; the server that its last write with a WAIT behind it went to, and the nodes that have it;
 * whether its lease is over; whether it waits for its answer; whether its release is owed, and by which gate */
byte number[SLOTS], wrote_at[SLOTS], has[SLOTS], of_gate[SLOTS];
bool over[SLOTS], flying[SLOTS], owed[SLOTS];
byte minted, begun;

/* the world */
byte effects, told, stored, failovers, crashes, losses, ended;
bool won_any, emptied, ahead;
byte kept;                          /* whose answer came while its gate lived on */
byte ok;

/* ── A node ────────────────────────────────────────────────────────────────────────────────────────────────────── */

#define WRITES(n) (follows[n] == n)
#define ON(n, w) (has[w] & (1 << n))
/* WAIT counts the replicas that follow now. */
#define COUNTS(n, w) (n < NODES && follows[n] == wrote_at[w] && n != wrote_at[w] && ON(n, w) -> 1 : 0)
#define ACKS(w) (COUNTS(0, w) + COUNTS(1, w) + COUNTS(2, w) + COUNTS(3, w))
#ifdef CLOCKS
#define LAPSED(n, w) (over[w] || (ahead && n != 0))
#else
#define LAPSED(n, w) (over[w])
#endif

inline put(n, to, whose, nth) { state[n] = to; holder[n] = whose; attempt[n] = nth }
/* Written on a lane, with a WAIT behind it: nobody has it yet. */
inline on_lane(n, w) { wrote_at[w] = n; has[w] = 0 }

/* ok: 1 made, 2 what stands is another's, 3 it had been made before */
inline claims(n, h) {
  if
  :: state[n] == ABSENT -> number[h] = 1; put(n, IN_FLIGHT, h, 1); ok = 1
  :: state[n] == IN_FLIGHT && holder[n] == h -> ok = 3
  :: else -> ok = 2
  fi
}

/* The claim, written again on a lane. ok: 1 it stands there and was, 2 it does not. */
inline covers(n, h) {
  if
  :: state[n] == IN_FLIGHT && holder[n] == h -> on_lane(n, h); ok = 1
  :: else -> ok = 2
  fi
}

inline settles(n, h, kind) {
  if
  :: state[n] == ABSENT && kind == RELEASE -> ok = 1
  :: (state[n] == ABSENT && kind != RELEASE) ||
     (holder[n] == h && (state[n] == IN_FLIGHT || (state[n] == IN_DOUBT && kind == KEEP))) ->
     if
     :: kind == KEEP -> put(n, COMPLETED, h, number[h]); on_lane(n, h)
     :: kind == HOLD -> put(n, IN_DOUBT, h, number[h])
     :: kind == RELEASE && number[h] < 2 -> put(n, ABSENT, 0, 0)
     :: kind == RELEASE && number[h] >= 2 -> put(n, IN_DOUBT, h, number[h] - 1)
     fi;
     ok = 1
  :: else ->
     if
#ifdef WITHOUT_KEEP_AGAIN
     :: holder[n] == h && kind == KEEP && state[n] == COMPLETED -> wrote_at[h] = n; has[h] = 15; ok = 1
#else
     :: holder[n] == h && kind == KEEP && state[n] == COMPLETED -> on_lane(n, h); ok = 1
#endif
     :: holder[n] == h && kind != KEEP && state[n] == IN_DOUBT -> ok = 1
     :: else -> ok = 2
     fi
  fi
}

inline takes_over(n, taker, seen_state, seen) {
  if
#ifdef WITHOUT_TAKE_AGAIN
  :: state[n] == IN_FLIGHT && holder[n] == taker -> wrote_at[taker] = n; has[taker] = 15; ok = 1
#else
  :: state[n] == IN_FLIGHT && holder[n] == taker -> on_lane(n, taker); ok = 1
#endif
  :: state[n] == seen_state && holder[n] == seen && (state[n] != IN_FLIGHT || LAPSED(n, seen)) ->
     put(n, IN_FLIGHT, taker, number[taker]); on_lane(n, taker); ok = 1
  :: else -> ok = 2
  fi
}

/* ── What is watched ───────────────────────────────────────────────────────────────────────────────────────────── */

/* P: no two clients are given different answers. (Under rerun, a Keep that does not get through: see README.md.) */
inline speak(whose) {
#ifndef RERUN
  assert(told == 0 || told == whose);
#endif
  told = whose
}

/* P: a key whose request ran is never free at the primary, which counts each run; what was acknowledged as stored is
 * stored there. */
#define STANDS \
  assert(effects <= attempt[primary]); \
  assert(stored == 0 || (state[primary] == COMPLETED && holder[primary] == stored))

#define BUSY(w) (w != me && flying[w] && !over[w])
inline sends(h) {
  effects++;
  assert(effects <= MOST);                                   /* P: no more effects than runs are allowed */
  assert(number[h] > 1 || effects == 1);                     /* P: no first run where one has had its effect */
  assert(!(BUSY(1) || BUSY(2) || BUSY(3) || BUSY(4) || BUSY(5)));  /* P: nobody is sent to beside a live owner */
  flying[h] = 1
}

/* ── One request ───────────────────────────────────────────────────────────────────────────────────────────────── */

inline mints() { if :: minted < H -> minted++; me = minted; of_gate[me] = mine :: else -> goto out fi; unsure = 0 }
inline gives_up() { owed[me] = unsure }
#define AT main[mine]
#define LANE lane[mine]
#define LOSES losses < LOSSES -> losses++
#define DIES atomic { crashes < CRASHES -> crashes++; goto out }

/* Too few have it within its time. It was written all the same. */
#ifdef WITHOUT_SHORT_IS_UNKNOWN
#define SHORT skip
#else
#define SHORT unsure = 1
#endif

proctype exchange(byte mine) {
  byte me, s, h, a, kind;
  bool unsure, answered;

  atomic { begun == mine -> begun++ };
claim:
  atomic { mints() };
ask_claim:
  if
  :: atomic { WRITES(AT) -> claims(AT, me); s = state[AT]; h = holder[AT]; a = attempt[AT];
       if
       :: ok == 1 -> ok = 0;
#ifdef WITHOUT_WAIT_CLAIM
          goto won
#else
          goto cover
#endif
       :: ok == 3 -> ok = 0;                                 /* asked again */
#ifdef WITHOUT_CLAIM_AGAIN
          goto won                                           /* a WAIT that covers nothing is over at once */
#else
          goto cover
#endif
       :: ok == 2 -> ok = 0; gives_up(); goto found
       fi }
  :: atomic { WRITES(AT) && LOSES; claims(AT, me); ok = 0; unsure = 1; goto again }
  :: atomic { LOSES; unsure = 1; goto again }
  fi;
cover:
  if
  :: atomic { WRITES(LANE) -> covers(LANE, me);
       if
       :: ok == 1 -> ok = 0
#ifdef WITHOUT_LANE_IS_UNSURE
       :: ok == 2 -> ok = 0; goto claim                      /* it is gone: another claim */
#else
       :: ok == 2 -> ok = 0; unsure = 1; goto again
#endif
       fi }
  :: atomic { !WRITES(LANE) -> unsure = 1; goto again }
  :: atomic { LOSES; unsure = 1; goto again }
  fi;
  if
  :: atomic { ACKS(me) >= NEED -> has[me] = 0; goto won }
  :: atomic { has[me] = 0; SHORT }
  :: DIES
  fi;
again:
  if
  :: goto ask_claim                                          /* by the same holder */
  :: atomic { gives_up(); goto out }                         /* 503 store-unavailable */
  :: DIES
  fi;

found:                                                       /* decide.resolve */
  if
  :: s == ABSENT -> goto claim
  :: atomic { s == COMPLETED -> speak(h); goto out }         /* a replay waits for no replica */
  :: s == IN_FLIGHT && !LAPSED(AT, h) ->
     if
     :: atomic { WRITES(AT) && (state[AT] != IN_FLIGHT || holder[AT] != h || LAPSED(AT, h)) ->
          s = state[AT]; h = holder[AT]; a = attempt[AT]; goto found }
     :: goto out                                             /* 409 in-flight */
     fi
  :: s == IN_DOUBT || (s == IN_FLIGHT && LAPSED(AT, h)) ->
#ifdef RERUN
     if :: a < MOST :: goto out fi
#else
     goto out                                                /* 409 in-doubt */
#endif
  fi;

#ifdef RERUN
  atomic { mints(); number[me] = a + 1 };
ask_takeover:
  if
  :: atomic { WRITES(LANE) -> takes_over(LANE, me, s, h);
       if
       :: ok == 1 -> ok = 0
       :: ok == 2 -> ok = 0; gives_up(); s = state[LANE]; h = holder[LANE]; a = attempt[LANE]; goto found
       fi }
  :: atomic { WRITES(LANE) && LOSES; takes_over(LANE, me, s, h); ok = 0; unsure = 1; goto take_again }
  fi;
#ifdef WITHOUT_WAIT_TAKEOVER
  atomic { has[me] = 0; goto won };
#endif
  if
  :: atomic { ACKS(me) >= NEED -> has[me] = 0; goto won }
  :: atomic { has[me] = 0; SHORT }
  :: DIES
  fi;
take_again:
  if
  :: goto ask_takeover
  :: atomic { gives_up(); goto out }
  :: DIES
  fi;
#endif

won:
  atomic { s = 0; h = 0; a = 0; won_any = 1 };
  if
  :: DIES
  :: atomic { kind = RELEASE }                               /* not sent, or too late */
  :: atomic { !over[me] -> sends(me) };
     if
     :: DIES
     :: atomic { kind = KEEP }
     :: atomic { kind = HOLD }
     fi;
     atomic { flying[me] = 0; if :: kind == KEEP -> kept = me :: else -> skip fi }
  fi;
  if :: kind == KEEP :: kind != KEEP -> goto ask_main fi;

ask_keep:
  if
  :: atomic { WRITES(LANE) -> settles(LANE, me, KEEP);
       if
       :: ok == 1 -> ok = 0
       :: ok == 2 -> ok = 0;                                 /* superseded */
          if :: state[LANE] == COMPLETED && !answered -> speak(holder[LANE]) :: else -> skip fi;
          kept = 0; goto out
       fi }
  :: atomic { WRITES(LANE) && LOSES; settles(LANE, me, KEEP); ok = 0; goto ask_keep }
  fi;
#ifdef WITHOUT_WAIT_KEEP
  atomic { if :: !answered -> speak(me); stored = me :: else -> skip fi; ok = 0; goto out };
#endif
  if
  :: atomic { ACKS(me) >= NEED -> if :: !answered -> speak(me); stored = me; STANDS :: else -> skip fi; ok = 0; goto out }
  :: atomic { true ->                                        /* or its else would wait for the other options */
       if :: !answered -> speak(me) :: else -> skip fi; answered = 1 }  /* too few: the true answer, not-stored */
  :: DIES
  fi;
#ifdef WITHOUT_KEEP_ON
  goto out;
#endif
  if                                                         /* the settler, in the background */
  :: atomic { ACKS(me) >= NEED -> goto out }
  :: atomic { LANE != wrote_at[me] || !WRITES(LANE) -> goto ask_keep }
  :: DIES
  fi;

ask_main:                                                    /* a Hold, a Release: no replica is waited for */
  if
  :: atomic { WRITES(AT) -> settles(AT, me, kind); ok = 0;
       if :: kind == RELEASE && unsure -> owed[me] = 1 :: else -> skip fi }
  :: DIES
  fi;

out:
  atomic { if :: me != 0 -> if :: flying[me] && kept == me -> kept = 0 :: else -> skip fi;
             flying[me] = 0; has[me] = 0; wrote_at[me] = 0
           :: else -> skip fi;
    s = 0; h = 0; a = 0; me = 0; kind = 0; unsure = 0; answered = 0; ended++ }
}

/* ── The settler: what was given up is released until the store has answered, and once more ──────────────────── */

/* The last repeat comes after the failover. */
#ifdef WITHOUT_RELEASE_AGAIN
#define IS_LAST(k) (1)
#else
#define IS_LAST(k) (main[of_gate[k]] == primary && failovers == FAILOVERS)
#endif
#define RELEASES(k) \
  :: atomic { owed[k] && WRITES(main[of_gate[k]]) -> settles(main[of_gate[k]], k, RELEASE); ok = 0; \
       if :: IS_LAST(k) -> owed[k] = 0 :: else -> skip fi }

proctype settler() {
end:
  do
  RELEASES(1) RELEASES(2) RELEASES(3) RELEASES(4) RELEASES(5)
  od
}

/* ── The servers, and who finds them ───────────────────────────────────────────────────────────────────────────── */

#define NOTES(w, r) if :: wrote_at[w] == follows[r] -> has[w] = has[w] | (1 << r) :: else -> skip fi
#define SAME(r) (state[r] == state[follows[r]] && holder[r] == holder[follows[r]] && attempt[r] == attempt[follows[r]])
#define WAITS(w, r) (w <= minted && wrote_at[w] == follows[r] && !ON(r, w))
/* All that its server has written so far. */
#define COPIES(r) \
  :: atomic { r < NODES && !WRITES(r) && (!SAME(r) || !in_step[r] || \
         WAITS(1, r) || WAITS(2, r) || WAITS(3, r) || WAITS(4, r) || WAITS(5, r)) -> \
       put(r, state[follows[r]], holder[follows[r]], attempt[follows[r]]); in_step[r] = 1; \
       NOTES(1, r); NOTES(2, r); NOTES(3, r); NOTES(4, r); NOTES(5, r) }

#ifdef HASTY
#define EMPTIES(r) put(r, ABSENT, 0, 0)
#define FIT(r) (follows[r] == primary)
#else
#define EMPTIES(r) skip
#define FIT(r) (follows[r] == primary && in_step[r])
#endif
#ifdef CLOCKS
#define AHEAD ahead = 1
#else
#define AHEAD skip
#endif
#define PROMOTES(r) \
  :: atomic { r < NODES && failovers < FAILOVERS && r != primary && FIT(r) -> \
       failovers++; follows[r] = r; primary = r; \
       AHEAD; STANDS }
/* Told by the Sentinels to follow the new primary: it takes that one's data for its own, and ends what waits on it. */
#define NOWHERE 9
#define ENDS_WAIT(w, r) if :: wrote_at[w] == r -> wrote_at[w] = NOWHERE; has[w] = 0 :: else -> skip fi
#ifdef CUT
#define TOLD(r) (r != 0)
#define PLACE(r) (failovers > 0 || r < NODES - 1)
#else
#define TOLD(r) (1)
#define PLACE(r) (1)
#endif
#define JOINS(r) \
  :: atomic { r < NODES && r != primary && follows[r] != primary && TOLD(r) && PLACE(r) -> \
       follows[r] = primary; in_step[r] = 0; EMPTIES(r); \
       ENDS_WAIT(1, r); ENDS_WAIT(2, r); ENDS_WAIT(3, r); ENDS_WAIT(4, r); ENDS_WAIT(5, r) }

#ifdef WITHOUT_LEAVES
#define MAIN_FINDS(g) (!WRITES(main[g]))
#else
#define MAIN_FINDS(g) (1)
#endif
#ifdef WITHOUT_LANES_FOLLOW
#define LANE_FINDS(g) (!WRITES(lane[g]))
#else
#define LANE_FINDS(g) (MAIN_FINDS(g))
#endif
#define FINDS(g) \
  :: atomic { g < N && main[g] != primary && MAIN_FINDS(g) -> main[g] = primary } \
  :: atomic { g < N && lane[g] != primary && LANE_FINDS(g) -> lane[g] = primary }

proctype world() {
end:
  do
  COPIES(0) COPIES(1) COPIES(2) COPIES(3)
  PROMOTES(0) PROMOTES(1) PROMOTES(2) PROMOTES(3)
  JOINS(0) JOINS(1) JOINS(2) JOINS(3)
  FINDS(0) FINDS(1) FINDS(2)
  :: atomic { state[primary] == IN_FLIGHT && !over[holder[primary]] -> over[holder[primary]] = 1 }
#ifdef EMPTIED
  :: atomic { !emptied && failovers == 0 -> emptied = 1; put(primary, ABSENT, 0, 0); STANDS }
#endif
  od
}

/* When nothing can move any more. */
active proctype quiet() {
  timeout ->
  assert(ended == N);
  assert(state[primary] != IN_FLIGHT || over[holder[primary]]);  /* P: no key is stuck in flight */
#ifndef RERUN
  assert(won_any || crashes > 0 || state[primary] == ABSENT);    /* P: no doubt where no claim was won and nobody died */
  assert(kept == 0 || crashes > 0 || (state[primary] == COMPLETED && holder[primary] == kept));
                                                             /* P: an answer that came is kept in the end */
#endif
  STANDS
}

init {
  atomic {
    byte n = 0;
    do
    :: n < 4 -> in_step[n] = 1;
#ifdef CUT
       if :: n == NODES - 1 -> follows[n] = n :: else -> skip fi;
#endif
       n++
    :: else -> break
    od;
    n = 0;
    do :: n < N -> run exchange(n); n++ :: else -> break od;
    n = 0;
    run settler(); run world()
  }
}
