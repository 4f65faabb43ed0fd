use std::{collections::HashMap, env, ops::Range, str::FromStr, time::Duration};

use crate::{Load, Workload};

/// What a process of the comparison does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Passes calls on.
    Router,
    /// Gives back what it is called with.
    Callee,
    /// Calls, and measures.
    Caller,
    /// Connects, offers something, and does nothing.
    Nodes,
}

/// `ROLE key=value …`
#[derive(Debug)]
pub struct Options {
    pub role: Role,
    values: HashMap<String, String>,
}

impl Options {
    /// The options of this process.
    ///
    /// # Panics
    /// If they are not what the driver gives: there is nobody else to tell.
    pub fn from_args() -> Self {
        let mut args = env::args().skip(1);
        let role = match args.next().as_deref() {
            Some("router") => Role::Router,
            Some("callee") => Role::Callee,
            Some("caller") => Role::Caller,
            Some("nodes") => Role::Nodes,
            other => panic!("no such role: {other:?}"),
        };
        let pair = |arg: String| {
            let (key, value) = arg.split_once('=').unwrap_or_else(|| panic!("not key=value: {arg}"));
            (key.to_owned(), value.to_owned())
        };
        Self { role, values: args.map(pair).collect() }
    }

    pub fn text(&self, key: &str) -> &str {
        self.values.get(key).unwrap_or_else(|| panic!("{key}=… is missing"))
    }

    pub fn number<T: FromStr>(&self, key: &str) -> T {
        self.text(key).parse().unwrap_or_else(|_| panic!("{key}={} is not a number", self.text(key)))
    }

    pub fn address(&self) -> &str {
        self.text("address")
    }

    /// What a caller is to do.
    pub fn load(&self) -> Load {
        Load {
            workload: match self.text("workload") {
                "latency" => Workload::OneByOne,
                "throughput" => Workload::Outstanding(self.number("outstanding")),
                "broadcast" => Workload::Broadcast(self.number("callees")),
                other => panic!("no such workload: {other}"),
            },
            size: self.number("size"),
            warm_up: Duration::from_secs_f64(self.number("warm_up")),
            window: Duration::from_secs_f64(self.number("window")),
            processes: self.numbers("processes"),
        }
    }

    /// The numbers of the idle nodes that this process has.
    pub fn nodes(&self) -> Range<usize> {
        let first = self.number("first");
        first..first + self.number::<usize>("count")
    }

    fn numbers<T: FromStr>(&self, key: &str) -> Vec<T> {
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{key}: {text} is not a number"));
        self.text(key).split(',').filter(|text| !text.is_empty()).map(number).collect()
    }
}
