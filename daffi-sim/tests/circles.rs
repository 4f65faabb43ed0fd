//! Calls that come back to where they came from, in virtual time: each ends, whatever it waits for.

use std::time::Duration;

use daffi::Limits;
use daffi_sim::{Circle, Circled, Options, circle};

/// How deeply calls may be nested.
const DEPTH_MAX: usize = 32;
/// More than that.
const ON_AND_ON: u32 = 1000;
/// On how many networks each is tried: fast and slow ones, with buffers of many sizes.
const SEEDS: u64 = 8;

/// Runs a circle on some networks. `holds` checks the outcome; everything else must be as promised.
#[track_caller]
fn each(what: &Circle, holds: impl Fn(&Circled)) {
    for seed in 0..SEEDS {
        let circled = circle(seed, what, Options::default());
        assert_eq!(circled.violations, [""; 0], "seed {seed}: {what:?}");
        assert!(circled.took.is_some(), "seed {seed}: it hangs: {what:?}, {circled:?}");
        holds(&circled);
    }
}

/// U3: A calls B, which calls A; rings of up to five nodes, once around and as deep as calls may be nested.
#[test]
fn calls_that_come_back_are_answered() {
    for nodes in 2..=5 {
        let through: Vec<_> = (0..nodes).collect();
        for length in [1, nodes - 1, nodes, DEPTH_MAX - 1] {
            // The first call is made by a node of the ring, and so comes back to its caller.
            let ring = Circle::new(vec![(nodes - 1, 0)], through.clone(), length as u32);
            each(&ring, |circled| {
                assert_eq!((circled.runs, circled.count("value")), (length + 1, length + 1), "{circled:?}");
            });
        }
    }
}

/// U3: an endless ring ends where it is too deep, and all calls before that are answered.
#[test]
fn a_ring_that_goes_on_and_on_ends_with_the_hop_limit() {
    for nodes in [2, 3, 5] {
        let starts: Vec<_> = (0..nodes).map(|node| (node, (node + 1) % nodes)).collect();
        for first in [vec![(0, 1)], starts] {
            let rings = first.len();
            let ring = Circle::new(first, (0..nodes).collect(), ON_AND_ON);
            each(&ring, |circled| {
                assert_eq!(circled.runs, rings * DEPTH_MAX, "{circled:?}");
                assert_eq!(circled.count("value"), rings * DEPTH_MAX, "{circled:?}");
                let refused = (DEPTH_MAX + 1, "HopLimit".to_owned());
                assert_eq!(circled.told.iter().filter(|told| **told == refused).count(), rings);
                assert_eq!(circled.told.len(), rings * (DEPTH_MAX + 1));
            });
        }
    }
}

/// U3: a node is no candidate for its own calls, whether its users or its callbacks make them.
#[test]
fn a_node_that_calls_itself_is_told_so() {
    let directly = Circle::new(vec![(0, 0)], vec![0], 0);
    each(&Circle { nodes: 2, ..directly }, |circled| {
        assert_eq!((&circled.told[..], circled.runs), (&[(1, "NoCandidate".to_owned())][..], 0));
    });
    let nested = Circle::new(vec![(1, 0)], vec![0], ON_AND_ON);
    each(&nested, |circled| {
        let told = [(1, "value".to_owned()), (2, "NoCandidate".to_owned())];
        assert_eq!((&circled.told[..], circled.runs), (&told[..], 1));
    });
}

fn limited(held: Option<usize>, in_flight: Option<usize>) -> Limits {
    let mut limits = Limits { grace: Duration::from_millis(20), ..Limits::default() };
    limits.requests_held_max = held.unwrap_or(limits.requests_held_max);
    limits.calls_in_flight_max = in_flight.unwrap_or(limits.calls_in_flight_max);
    limits
}

/// U4: two nodes hold as many calls as they may, all of which wait for the other node: further calls are
/// refused, and none of them needs a deadline.
#[test]
fn two_nodes_that_are_full_of_calls_to_each_other_refuse_more() {
    for held in [1, 2] {
        for length in [1, ON_AND_ON] {
            let first = (0..2 * held).map(|number| (2, number % 2)).collect();
            let ring = Circle { limits: limited(Some(held), None), ..Circle::new(first, vec![0, 1], length) };
            each(&ring, |circled| {
                assert!(circled.count("Overloaded") > 0, "{circled:?}");
                let clean = |told: &str| ["value", "Overloaded"].contains(&told);
                assert!(circled.told.iter().all(|(_, told)| clean(told)), "{circled:?}");
                // The first calls are answered: it is what they lead to that is refused.
                let first = circled.told.iter().filter(|(depth, _)| *depth == 1);
                assert_eq!(first.filter(|(_, told)| told == "value").count(), 2 * held, "{circled:?}");
            });
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(10);

#[track_caller]
fn ends_with_the_deadline(circled: &Circled, first: usize) {
    let expired = circled.told.iter().filter(|(depth, told)| *depth == 1 && told == "Timeout");
    assert_eq!(expired.count(), first, "{circled:?}");
    let took = circled.took.unwrap();
    assert!(took >= DEADLINE && took <= DEADLINE + Duration::from_millis(100), "{took:?}");
}

/// U4: two nodes may make one or two calls at a time, and further calls wait for these: they end when the
/// first ones must.
#[test]
fn two_nodes_that_wait_for_places_end_with_the_deadline() {
    for places in [1, 2] {
        let first: Vec<_> = (0..places).flat_map(|_| [(0, 1), (1, 0)]).collect();
        let count = first.len();
        let ring = Circle::new(first, vec![0, 1], ON_AND_ON);
        let ring = Circle { limits: limited(None, Some(places)), timeout: Some(DEADLINE), ..ring };
        each(&ring, |circled| ends_with_the_deadline(circled, count));
    }
}

/// U4: the same for callbacks that run one call at a time, and come back to themselves.
#[test]
fn callbacks_that_run_one_at_a_time_and_come_back_end_with_the_deadline() {
    let lone = Circle::new(vec![(2, 0)], vec![0, 1], ON_AND_ON);
    let both = Circle::new(vec![(2, 0), (2, 1)], vec![0, 1], ON_AND_ON);
    for ring in [lone, both] {
        let count = ring.first.len();
        let ring = Circle { callback: "serial", timeout: Some(DEADLINE), ..ring };
        each(&ring, |circled| ends_with_the_deadline(circled, count));
    }
}
