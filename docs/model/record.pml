/* The record of one key, and the exchanges that move it. Untimed.
 *
 * N requests for one key, each in a gate of its own; one store whose verbs are atomic; one service that counts its
 * effects. Being slow is standing still between two steps, for as long as the model likes; the lease of whoever holds
 * the key may lapse meanwhile. The names are those of gateway/core/record.py and gateway/engine/.
 *
 * Every rule is a switch: -DWITHOUT_X takes rule X away, and the model must then find a history that breaks a promise.
 * README.md says where in the code each rule stands, and which test plays its counterexample.
 *
 * What may go wrong, and how often (-D…=n):
 *   CRASHES  a gate dies        LOSSES   the store's reply is lost, or the command is, and nobody says which
 *   ENDS     a life is over     DELAYS   a command is done later than anybody waits for it, or never
 *   FORGETS  the store loses a claim that it had acknowledged
 * Requests: N, holders that may be minted: H (at most 6). -DRERUN: on_doubt is rerun, with max_attempts MAX.
 */
#ifndef N
#define N 3
#endif
#ifndef H
#ifdef RERUN
#define H (N+2)                     /* whoever takes over has asked for a claim before */
#else
#define H (N+1)
#endif
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
#ifndef DELAYS
#define DELAYS 0
#endif
#ifndef ENDS
#define ENDS 0
#endif
#ifndef FORGETS
#define FORGETS 0
#endif
#ifndef MAX
#define MAX 2
#endif
#ifdef RERUN
#define MOST MAX
#else
#define MOST 1
#endif
#define SLOTS 7                     /* holders are 1 … 6; 0 is nobody */

/* states of the record */
#define ABSENT 0
#define IN_FLIGHT 1
#define COMPLETED 2
#define IN_DOUBT 3
/* what is done with a claim, and the two verbs that make one */
#define KEEP 1
#define HOLD 2
#define RELEASE 3
#define CLAIM 4
#define TAKEOVER 5
/* a request at the service: not sent, sent, answered, declared not done, its connection lost */
#define UNSENT 0
#define SENT 1
#define ANSWERED 2
#define REFUSED 3
#define LOST 4

/* the record: state, holder, attempt, whose answer; and whether its age is past its lease, by the store's clock */
byte state, holder, attempt, answer;
bool lapsed;

/* by holder: the attempt that its claim is, its request at the service, the life in which it claimed; whether its
 * owner's clock shows that its time to send is over; whether it waits for the service's answer; whether the settler
 * owes the store its release; and a command of it that is still on its way */
byte number[SLOTS], request[SLOTS], claimed_in[SLOTS];
bool over[SLOTS], flying[SLOTS], owed[SLOTS];
byte coming[SLOTS], coming_state[SLOTS], coming_holder[SLOTS];
byte minted, begun;

/* the world */
byte lives;                         /* how often the record's life was over */
byte effects[ENDS+1];               /* by the life in which their claim was made */
byte told[ENDS+1];                  /* the complete answer that clients of this life were given: whose */
byte taken[SLOTS];                  /* how often a claim of this holder was taken over */
byte crashes, losses, delays, forgets, ended;
bool anything_sent, told_stored;
byte ok;                            /* how the verb ended; 0 between steps */

/* ── The store's verbs: record.claimed, record.settled, record.replaced ────────────────────────────────────────── */

/* P: nothing but the end of its window moves what is completed. */
#define MOVES assert(state != COMPLETED)

inline put(to, whose, nth, what) { MOVES; state = to; holder = whose; attempt = nth; answer = what; lapsed = 0 }
inline absent()        { state = ABSENT; holder = 0; attempt = 0; answer = 0; lapsed = 0 }

/* ok: 1 won, 2 what stands is another's */
inline claims(h) {
  if
  :: state == ABSENT -> number[h] = 1; claimed_in[h] = lives; put(IN_FLIGHT, h, 1, 0); ok = 1
  :: state == IN_FLIGHT && holder == h -> ok = 1              /* asked again */
  :: else -> ok = 2
  fi
}

inline moves_to(h, kind) {
  if
  :: kind == KEEP ->
     assert(request[h] == ANSWERED);                         /* P: what is done was answered, to its end */
     put(COMPLETED, h, number[h], h)
  :: kind == HOLD -> put(IN_DOUBT, h, number[h], 0)
#ifdef WITHOUT_RELEASE_GOES_BACK
  :: kind == RELEASE -> MOVES; absent()
#else
  :: kind == RELEASE && number[h] < 2 -> MOVES; absent()
  :: kind == RELEASE && number[h] >= 2 -> put(IN_DOUBT, h, number[h] - 1, 0)
#endif
  fi
}

#ifdef WITHOUT_SETTLE_HOLDER
#define MINE(h) (1)
#else
#define MINE(h) (holder == h)
#endif
#ifdef WITHOUT_SETTLE_STATE
#define MOVABLE(kind) (1)
#else
#define MOVABLE(kind) (state == IN_FLIGHT || (state == IN_DOUBT && kind == KEEP))
#endif

/* ok: 1 done (now, before, or because nothing was there), 2 what stands is another's */
inline settles(h, kind) {
  if
#ifdef WITHOUT_TELL_AGAIN
  :: state == ABSENT -> ok = 1
#else
  :: state == ABSENT && kind == RELEASE -> ok = 1
  :: state == ABSENT && kind != RELEASE -> moves_to(h, kind); ok = 1     /* the store forgot */
#endif
  :: state != ABSENT && MINE(h) && MOVABLE(kind) -> moves_to(h, kind); ok = 1
  :: else ->
     if
     :: holder == h && ((kind == KEEP && state == COMPLETED) || (kind != KEEP && state == IN_DOUBT)) -> ok = 1
     :: else -> ok = 2
     fi
  fi
}

#ifdef WITHOUT_TAKE_STATE
#define SAME_STATE(s) (state != ABSENT)
#else
#define SAME_STATE(s) (state == s)
#endif
#ifdef WITHOUT_TAKE_HOLDER
#define SAME_HOLDER(h) (1)
#else
#define SAME_HOLDER(h) (holder == h)
#endif
#ifdef WITHOUT_TAKE_LAPSE
#define LAPSE_STANDS (1)
#else
#define LAPSE_STANDS (state != IN_FLIGHT || lapsed)
#endif

/* ok: 1 won, 2 what stands now is something else. The new record is made from what was seen: attempt + 1. */
inline takes_over(taker, seen_state, seen) {
  if
  :: state == IN_FLIGHT && holder == taker -> ok = 1          /* asked again */
  :: !(state == IN_FLIGHT && holder == taker) && SAME_STATE(seen_state) && SAME_HOLDER(seen) && LAPSE_STANDS ->
     taken[seen]++;
     assert(taken[seen] <= 1);                                /* P: one takes each claim over */
     claimed_in[taker] = lives;
     put(IN_FLIGHT, taker, number[taker], 0); ok = 1
  :: else -> ok = 2
  fi
}

/* ── What is watched ───────────────────────────────────────────────────────────────────────────────────────────── */

/* P: no two clients of one life are given different complete answers. (Under rerun a store that is away at the
 * Keep breaks it, which no rule closes: those runs say ANSWERS_MAY_DIFFER.) */
inline speak(whose, life) {
  if
  :: told[life] == 0 -> told[life] = whose
  :: told[life] != 0 ->
#ifdef ANSWERS_MAY_DIFFER
     skip
#else
     assert(told[life] == whose)
#endif
  fi
}

/* One hole no rule closes: an owner that stands still between its look and its first byte until its lease is over.
 * What it then sends is counted among the effects, and judged by nothing else. */
#define STOOD_STILL(h) over[h]
#define BUSY(h) (h != me && flying[h] && !over[h])
inline sends(h) {
  /* P: nobody is sent to while another, whose lease is not over, waits for its answer. */
  assert(FORGETS || STOOD_STILL(h) || !(BUSY(1) || BUSY(2) || BUSY(3) || BUSY(4) || BUSY(5) || BUSY(6)));
  /* P: a first run is never sent where one has had its effect. */
  assert(FORGETS || STOOD_STILL(h) || number[h] > 1 || effects[claimed_in[h]] == 0);
  request[h] = SENT; flying[h] = 1; anything_sent = 1
}

/* ── One request ───────────────────────────────────────────────────────────────────────────────────────────────── */

/* A fresh holder for every claim and every takeover; where none is left to the model the client gives up. */
inline mints() {
#ifdef WITHOUT_FRESH_HOLDER
  if :: me != 0 -> skip :: me == 0 -> if :: minted < H -> minted++; me = minted :: else -> goto out fi fi
#else
  if :: minted < H -> minted++; me = minted :: else -> goto out fi
#endif
}
inline looks() { s = state; h = holder; a = attempt; w = answer; l = lapsed; e = lives }
inline forgets_what_it_saw() { s = 0; h = 0; a = 0; w = 0; l = 0; e = 0 }

#ifdef WITHOUT_GIVE_UP
#define GIVES_UP skip
#else
#define GIVES_UP owed[me] = 1
#endif
#ifdef WITHOUT_REPEAT
#define REPEATS skip
#else
#define REPEATS owed[me] = 1
#endif

proctype exchange(byte mine) {
  byte me;                          /* its holder */
  byte s, h, a, w, e; bool l;       /* what the store showed: state, holder, attempt, answer, in which life; lapsed */
  byte kind;                        /* the settlement */
  bool unsure, answered;

  /* Requests are alike: they may as well begin in the order of their numbers. */
  atomic { begun == mine -> begun++; mints(); goto ask };
claim:
  atomic { mints(); unsure = 0 };
ask:
#ifdef WITHOUT_ATOMIC_CLAIM
  atomic { looks() };
  if
  :: atomic { s == ABSENT -> number[me] = 1; claimed_in[me] = lives; put(IN_FLIGHT, me, 1, 0);
       forgets_what_it_saw(); goto fly }
  :: s != ABSENT -> goto found
  fi;
#endif
ask_claim:
  if
  :: atomic { claims(me); looks(); if :: ok == 1 -> ok = 0; goto won :: ok == 2 -> ok = 0; goto not_won fi }
  :: atomic { losses < LOSSES -> losses++; claims(me); ok = 0; unsure = 1 }
  :: atomic { losses < LOSSES -> losses++; unsure = 1 }
  :: atomic { delays < DELAYS && coming[me] == 0 -> delays++; coming[me] = CLAIM; unsure = 1 }
  fi;
  if
  :: goto ask_claim                                          /* asked again, by the same holder */
  :: atomic { GIVES_UP; goto out }                           /* 503 store-unavailable */
  :: atomic { crashes < CRASHES -> crashes++; goto out }
  fi;

not_won:
  atomic { if :: unsure -> unsure = 0; GIVES_UP :: else -> skip fi };

found:                                                       /* decide.resolve */
  if
  :: s == ABSENT -> goto claim
  :: atomic { s == COMPLETED -> speak(w, e); goto out }      /* replay */
  :: s == IN_FLIGHT && !l ->
     if
     :: atomic { state != IN_FLIGHT || lapsed -> looks() }; goto found
     :: goto out                                             /* its wait is over: 409 in-flight */
#ifdef WITHOUT_TAKE_LAPSE
     :: l = 1; goto found                                    /* a clock of its own, and it is ahead */
#endif
     fi
  :: s == IN_DOUBT || (s == IN_FLIGHT && l) ->
#ifdef RERUN
     if
#ifdef WITHOUT_MAX_ATTEMPTS
     :: goto take_over
#else
     :: a < MAX -> goto take_over
#endif
     :: goto out
     fi
#else
     goto out                                                /* 409 in-doubt */
#endif
  fi;

#ifdef RERUN
take_over:
  atomic { mints(); unsure = 0; number[me] = a + 1 };
ask_takeover:
  if
  :: atomic { takes_over(me, s, h); looks();
       if :: ok == 1 -> ok = 0; goto won :: ok == 2 -> ok = 0; goto not_won fi }
  :: atomic { losses < LOSSES -> losses++; takes_over(me, s, h); ok = 0; unsure = 1 }
  :: atomic { losses < LOSSES -> losses++; unsure = 1 }
  :: atomic { delays < DELAYS && coming[me] == 0 -> delays++;
       coming[me] = TAKEOVER; coming_state[me] = s; coming_holder[me] = h; unsure = 1 }
  fi;
  if
  :: goto ask_takeover
  :: atomic { GIVES_UP; goto out }
  :: atomic { crashes < CRASHES -> crashes++; goto out }
  fi;
#endif

won:
  atomic { forgets_what_it_saw() };
fly:
  if                                                         /* the look before the first byte */
  :: atomic { crashes < CRASHES -> crashes++; goto out }
  :: atomic { over[me] -> kind = RELEASE; goto settle }
  :: !over[me]
  fi;
  if                                                         /* it may stand still here, after the look */
  :: atomic { kind = RELEASE; goto settle }                  /* NotSent */
  :: atomic { sends(me) }
  fi;
  if
  :: atomic { crashes < CRASHES -> crashes++; goto out }
  :: atomic { request[me] == ANSWERED -> kind = KEEP }
  :: atomic { request[me] == REFUSED -> kind = RELEASE }
  :: atomic { request[me] == LOST -> kind = HOLD }
#ifdef WITHOUT_READ_TO_ITS_END
  :: atomic { request[me] == SENT -> answered = 1; kind = KEEP }  /* the head of a stream is taken for its end */
#endif
  :: atomic { answered = 1 };                                /* 504, or the head of a stream; it listens on */
     if
     :: atomic { crashes < CRASHES -> crashes++; goto out }
     :: atomic { request[me] == ANSWERED -> kind = KEEP }
     :: atomic { request[me] == REFUSED -> kind = RELEASE }
     :: atomic { request[me] == LOST -> kind = HOLD }
#ifdef WITHOUT_HOLD_UNKNOWN
     :: atomic { kind = RELEASE }
#else
     :: atomic { kind = HOLD }                               /* the exchange's end, or the gate's */
#endif
     fi
#ifdef WITHOUT_OUTLIVES_ITS_CLIENT
  :: atomic { answered = 1; kind = RELEASE }                 /* the client hung up, and took its exchange along */
#endif
  fi;

settle:
  atomic { flying[me] = 0;
#ifdef WITHOUT_REMEMBER_FIRST
    if :: kind == KEEP && !answered -> answered = 1; told_stored = 1; speak(me, claimed_in[me]) :: else -> skip fi;
#endif
    skip };
ask_settle:
  if
#ifdef WITHOUT_REMEMBER_FIRST
  :: atomic { crashes < CRASHES -> crashes++; goto out }
#endif
  :: atomic { settles(me, kind);
       if
       :: ok == 1 ->
          if
          :: kind == KEEP && !answered -> told_stored = 1; speak(me, lives)
          :: kind == RELEASE && unsure -> REPEATS
          :: else -> skip
          fi
       :: ok == 2 && kind == KEEP && !answered ->            /* superseded */
#ifdef WITHOUT_ANSWER_FROM_RECORD
          speak(me, claimed_in[me])
#else
          if :: state == COMPLETED -> speak(answer, lives) :: else -> skip fi
#endif
       :: else -> skip
       fi;
       if
       :: ok == 1 && kind == HOLD && answered && request[me] == SENT -> ok = 0; goto late
       :: else -> ok = 0; goto out
       fi }
  :: atomic { losses < LOSSES -> losses++; settles(me, kind); ok = 0 }
  :: atomic { losses < LOSSES -> losses++ }
  :: atomic { delays < DELAYS && coming[me] == 0 -> delays++; coming[me] = kind }
  fi;
  atomic {                                                   /* the true answer, not-stored */
    if
    :: kind == KEEP && !answered -> speak(me, claimed_in[me])
    :: kind == RELEASE && unsure -> REPEATS
    :: else -> skip
    fi;
    answered = 1 };
  if
  :: atomic { crashes < CRASHES -> crashes++; goto out }
#ifdef WITHOUT_SETTLE_ON
  :: goto out
#else
  :: goto ask_settle                                         /* the settler, in the background */
#endif
  fi;

late:                                                        /* a stream goes on in doubt, as long as its client reads */
  if
  :: atomic { crashes < CRASHES -> crashes++; goto out }
  :: atomic { request[me] == ANSWERED -> kind = KEEP; goto ask_settle }
  :: goto out                                                /* it broke off, or its client left */
  fi;

out:
  atomic { forgets_what_it_saw(); flying[me] = 0; me = 0; kind = 0; unsure = 0; answered = 0; ended++ }
}

/* ── The settler's releases: settling.give_up, settling.repeat ─────────────────────────────────────────────────── */

/* The last repeat comes when no command of this holder can be on its way any more. */
#ifdef WITHOUT_REPEAT
#define IS_LAST(k) (1)
#else
#define IS_LAST(k) (coming[k] == 0)
#endif
#define RELEASES(k) \
  :: atomic { owed[k] -> settles(k, RELEASE); ok = 0; if :: IS_LAST(k) -> owed[k] = 0 :: else -> skip fi }

proctype settler() {
end:
  do
  RELEASES(1) RELEASES(2) RELEASES(3) RELEASES(4) RELEASES(5) RELEASES(6)
  od
}

/* ── Time, and the wire ────────────────────────────────────────────────────────────────────────────────────────── */

#define LANDS(k) \
  :: atomic { coming[k] != 0 -> \
       if \
       :: coming[k] == CLAIM -> claims(k) \
       :: coming[k] == TAKEOVER -> takes_over(k, coming_state[k], coming_holder[k]) \
       :: coming[k] < CLAIM -> settles(k, coming[k]) \
       :: skip \
       fi; \
       ok = 0; coming[k] = 0; coming_state[k] = 0; coming_holder[k] = 0 }

proctype world() {
end:
  do
  :: false
#ifndef WITHOUT_LAPSE
  :: atomic { state == IN_FLIGHT && !lapsed -> lapsed = 1; over[holder] = 1 }
#endif
#if DELAYS
  LANDS(1) LANDS(2) LANDS(3) LANDS(4) LANDS(5) LANDS(6)
#endif
#if ENDS
  /* A claim lives for its lease and its doubt window: no life ends before its lease. */
  :: atomic { lives < ENDS && state != ABSENT && (state != IN_FLIGHT || lapsed) -> lives++; absent() }
#endif
#if FORGETS
  :: atomic { forgets < FORGETS && state == IN_FLIGHT -> forgets++; absent() }
#endif
  od
}

#define SERVES(k) \
  :: atomic { request[k] == SENT -> \
       if \
       :: effects[claimed_in[k]]++; \
          assert(effects[claimed_in[k]] <= MOST + FORGETS);  /* P: no more effects than runs are allowed */ \
          if :: request[k] = ANSWERED :: request[k] = LOST fi \
       :: request[k] = REFUSED \
       :: request[k] = LOST                                  /* on its way: no effect */ \
       fi }

proctype service() {
end:
  do
  SERVES(1) SERVES(2) SERVES(3) SERVES(4) SERVES(5) SERVES(6)
  od
}

/* When nothing can move any more. */
active proctype quiet() {
  timeout ->
  assert(ended == N);
  assert(state != IN_FLIGHT || lapsed);                      /* P: no key is stuck in flight */
#ifndef RERUN                                                /* P: no doubt where no byte was sent and nobody died */
  assert(anything_sent || crashes > 0 || lives > 0 || forgets > 0 || state == ABSENT);
#endif
  assert(!told_stored || state == COMPLETED || lives > 0);   /* P: what a client was told is stored is stored */
}

init {
  atomic {
    byte n = 0;
    do :: n < N -> run exchange(n); n++ :: else -> break od;
    n = 0;
    run settler(); run world(); run service()
  }
}
