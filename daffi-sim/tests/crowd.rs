//! Many nodes at once, in virtual time.

use std::time::Duration;

use daffi_sim::{Options, crowd};

const NODES: u16 = 200;

/// Counts the `attempts` in each part of the time, in as many parts as it takes, and at least `parts`.
fn by_time(attempts: &[Duration], part: Duration, parts: usize) -> Vec<usize> {
    let mut counts = vec![0; parts];
    for at in attempts {
        let place = (at.as_micros() / part.as_micros()) as usize;
        counts.resize(counts.len().max(place + 1), 0);
        counts[place] += 1;
    }
    counts
}

#[track_caller]
fn is_spread(counts: &[usize], what: &str) {
    let (most, all) = (counts.iter().max().unwrap(), counts.iter().sum::<usize>());
    assert!(most * counts.len() <= 3 * all, "{what}: more than three times the mean: {counts:?}");
}

/// N9: nodes that lose their controller together do not all come back at once. Only attempts that reach the
/// new controller are counted, since others cost nobody anything.
#[test]
fn two_hundred_nodes_come_back_within_thirty_seconds_and_spread_over_time() {
    for (seed, away) in [(1, 3), (2, 10), (3, 20)] {
        let away = Duration::from_secs(away);
        let back = crowd(seed, NODES, away, Options::default());
        assert_eq!(back.violations, [""; 0]);
        let attempts: Vec<_> = back.attempts.iter().filter_map(|at| at.checked_sub(away)).collect();
        assert!(attempts.len() >= usize::from(NODES), "{} attempts", attempts.len());
        // The longest wait between two attempts is five seconds.
        let counts = by_time(&attempts, Duration::from_secs(1), 5);
        println!("{away:?} away: all back after {:?}, attempts by second {counts:?}", back.all_back);
        assert!(back.all_back.is_some_and(|after| after <= Duration::from_secs(30)), "{:?}", back.all_back);
        is_spread(&counts, &format!("{away:?} away"));
    }
}

/// A controller that is back at once meets the first attempts of all nodes.
#[test]
fn the_first_attempts_of_two_hundred_nodes_are_not_at_the_same_moment() {
    let back = crowd(4, NODES, Duration::ZERO, Options::default());
    assert_eq!(back.violations, [""; 0]);
    assert!(back.all_back.is_some_and(|after| after <= Duration::from_secs(1)), "{:?}", back.all_back);
    let first: Vec<_> =
        back.attempts.iter().filter_map(|at| at.checked_sub(Duration::from_millis(100))).collect();
    let counts = by_time(&first, Duration::from_millis(10), 10);
    println!("all back after {:?}, attempts by 10 ms {counts:?}", back.all_back);
    is_spread(&counts, "at once");
}
