use crate::usage::Usage;

/// Prints what a caller found out, as one line of JSON.
pub(crate) fn print(calls: u64, failed: u64, begin: &Usage, end: &Usage, latencies: Option<&mut Vec<u32>>) {
    let spent = begin.until(end);
    let times = latencies.map_or_else(String::new, |nanos| {
        nanos.sort_unstable();
        format!(r#","p50_us":{:.2},"p99_us":{:.2}"#, quantile(nanos, 0.5), quantile(nanos, 0.99))
    });
    println!(
        r#"{{"calls":{calls},"failed":{failed},"seconds":{:.4},"cpu_seconds":{:.2?},"steal":{:.4}{times}}}"#,
        spent.seconds, spent.processes, spent.steal
    );
}

/// In microseconds; of sorted nanoseconds.
fn quantile(nanos: &[u32], part: f64) -> f64 {
    let place = (nanos.len() as f64 * part) as usize;
    nanos.get(place.min(nanos.len().saturating_sub(1))).map_or(0.0, |&nanos| f64::from(nanos) / 1000.0)
}
