//! Many nodes at once, in virtual time.

use std::time::Duration;

use daffi_sim::{Options, crowd};

/// N9: what loses one controller together does not come back as one.
#[test]
fn two_hundred_nodes_come_back_spread_over_time() {
    for (seed, away) in [(1, 0), (2, 3), (3, 20)] {
        let away = Duration::from_secs(away);
        let back = crowd(seed, 200, away, Options::default());
        let mut buckets = vec![0; 1];
        for at in &back.attempts {
            let second = at.as_secs() as usize;
            buckets.resize(buckets.len().max(second + 1), 0);
            buckets[second] += 1;
        }
        println!("{away:?} away, all back after {:?}, attempts by second: {buckets:?}", back.all_back);
        assert_eq!(back.violations, [""; 0]);
    }
}
