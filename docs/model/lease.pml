/* The lease and the lives of a record, in discrete time. What gateway/core/policy.py computes and exchange.py obeys.
 *
 * N requests for one key, each in a gate of its own, under rerun (it shows most). Time passes only when every gate that
 * does not stand still waits for something. A gate may stand still for any time (PAUSES), its clock going on
 * (CLOCK_BOOTTIME). A store's reply takes up to REPLY ticks.
 *
 * `sane` watches an owner from its look before the first byte to its settlement, for as long as it does not stand
 * still. P: its claim stands all that time; nobody takes it over, and nobody claims the key beside it.
 */
#ifndef N
#define N 2
#endif
#ifndef PAUSES
#define PAUSES 1
#endif
#ifndef REPLY
#define REPLY 2
#endif
#ifndef END
#define END 16                      /* the model's last tick */
#endif
#define TIMEOUT 2
#define LATE 1
#define MARGIN 1
#define LEASE (TIMEOUT + LATE + MARGIN)
#define SEND_BY 2                   /* min(timeout, lease / 2) */
#define ENDS_BY (LEASE - MARGIN)
#define SETTLING (2 * MARGIN - 1)   /* a settlement and a second try of it */
#define WINDOW 1                    /* shorter than an exchange */
#define DOUBT_WINDOW LEASE          /* no shorter than the lease: settings/check.py */
#ifdef WITHOUT_CLAIM_LIFE
#define CLAIM_LIFE WINDOW
#else
#define CLAIM_LIFE (LEASE + DOUBT_WINDOW)
#endif
#ifdef WITHOUT_TAKE_MARGIN
#define TAKE_AT LEASE
#else
#define TAKE_AT (LEASE + MARGIN)
#endif
#ifdef WITHOUT_STORE_CLOCK
#define SKEW 2                      /* the taker's own clock is so far ahead */
#else
#define SKEW 0
#endif
#define ABSENT 0
#define IN_FLIGHT 1
#define COMPLETED 2
#define IN_DOUBT 3
#define NEVER 255

byte now, state, holder, ends, life;          /* life: what the last write set; ends: when it is over */
bool paused[N], sane[N], sent[N], replied[N];
byte due[N], stood[N];                        /* what each waits for; how long it has stood still since its t0 */
byte pauses;

#define AGE (now - (ends - life))
#define STANDS (state == IN_FLIGHT && holder == i + 1)
inline put(to, whose, so_long) { state = to; holder = whose; life = so_long; ends = now + life }
#if N > 2
#define NOBODY_IS_SANE (!sane[0] && !sane[1] && !sane[2])
#else
#define NOBODY_IS_SANE (!sane[0] && !sane[1])
#endif

proctype exchange(byte i) {
  byte t0, until, spent;
  do
  :: atomic { !paused[i] && now < END ->                    /* claim, or take over */
       due[i] = now; t0 = now; stood[i] = 0;
       if
       :: state == ABSENT -> assert(NOBODY_IS_SANE); put(IN_FLIGHT, i + 1, CLAIM_LIFE); break
       :: state == COMPLETED -> goto out
       :: state == IN_DOUBT || (state == IN_FLIGHT && AGE + SKEW >= TAKE_AT) ->
          assert(!sane[holder - 1]);
#ifdef WITHOUT_FRESH_LIFE
          state = IN_FLIGHT; holder = i + 1;
#else
          put(IN_FLIGHT, i + 1, CLAIM_LIFE);
#endif
          break
       :: else -> skip
       fi }
     due[i] = NEVER;
     if
     :: atomic { !paused[i] && (state != IN_FLIGHT || AGE + SKEW >= TAKE_AT) -> due[i] = now }
     :: goto out
     fi
  od;
  if                                                        /* the reply's way */
  :: due[i] = now
  :: atomic { REPLY > 0 -> due[i] = now + 1 }
  :: atomic { REPLY > 1 -> due[i] = now + 2 }
  fi;
  atomic { !paused[i] && now >= due[i] -> due[i] = now
#ifdef WITHOUT_T0
    ; t0 = now; stood[i] = 0
#endif
  };
  atomic { !paused[i] ->                                    /* the look before the first byte */
    spent = now - t0;
#ifdef WITHOUT_BOOTTIME
    spent = spent - stood[i];
#endif
    if
#ifndef WITHOUT_SEND_BY
    :: spent > SEND_BY -> goto release
#endif
    :: else -> skip
    fi;
    sane[i] = 1;
    assert(STANDS) };
  atomic { !paused[i] ->
    sent[i] = 1;
#ifdef WITHOUT_DEADLINE
    until = now + ENDS_BY;
#else
    until = t0 + ENDS_BY;
    if :: until < now -> until = now :: else -> skip fi;
#endif
    due[i] = until };
  atomic { !paused[i] && (replied[i] || now >= until) -> due[i] = now };
  if :: due[i] = now :: due[i] = now + SETTLING fi;
  atomic { !paused[i] && now >= due[i] ->
    assert(!sane[i] || STANDS);
    if
    :: STANDS -> if :: replied[i] -> put(COMPLETED, i + 1, WINDOW) :: else -> put(IN_DOUBT, i + 1, DOUBT_WINDOW) fi
    :: else -> skip
    fi;
    sane[i] = 0 };
  goto out;
release:
  atomic { !paused[i] -> if :: STANDS -> state = ABSENT; holder = 0; life = 0; ends = 0 :: else -> skip fi };
out:
  atomic { sane[i] = 0; due[i] = NEVER; stood[i] = 0; t0 = 0; until = 0; spent = 0 }
}

#define IDLE(k) (paused[k] || due[k] > now)
#if N > 2
#define ALL_IDLE (IDLE(0) && IDLE(1) && IDLE(2))
#else
#define ALL_IDLE (IDLE(0) && IDLE(1))
#endif
#define REPLIES(k) \
  :: atomic { sent[k] && !replied[k] -> replied[k] = 1; if :: due[k] > now -> due[k] = now :: else -> skip fi }
#define STANDS_STILL(k) \
  :: atomic { pauses < PAUSES && !paused[k] && due[k] != NEVER -> pauses++; paused[k] = 1; sane[k] = 0 } \
  :: atomic { paused[k] -> paused[k] = 0 }

active proctype clock() {
  byte k;
end:
  do
  :: atomic { now < END && ALL_IDLE -> now++; k = 0;
        do :: k < N -> if :: paused[k] -> stood[k]++ :: else -> skip fi; k++ :: else -> k = 0; break od;
        if :: state != ABSENT && now >= ends -> state = ABSENT; holder = 0; life = 0; ends = 0 :: else -> skip fi }
  REPLIES(0) REPLIES(1)
#if N > 2
  REPLIES(2)
#endif
  od
}

active proctype pauser() {
end:
  do
  STANDS_STILL(0) STANDS_STILL(1)
  od
}

init { atomic { byte n = 0; do :: n < N -> due[n] = NEVER; run exchange(n); n++ :: else -> break od } }
