//! When to ask for spares, and how many. Prints the tables of `docs/hedging.md`.
//!
//! `cargo bench --bench hedging [-- --reads N] [--seeds FROM] [--only alike|mixed|events] [--slow-share PART] [--svg FILE]`:
//! policies on traces ([`traces`]); `--svg` draws the frontier.
//!
//! `cargo bench --bench hedging -- sockets [--shape nine|thirty] [--reads N] [--rate PER_SECOND] [--part N] [--keep FILE]`: the
//! program's own reads through its S3 client, servers, and proxies that take their time ([`sockets`]).
//!
//! `cargo bench --bench hedging -- lists`: what it costs a bucket to name the newest version of a record ([`lists`]).

mod lists;
mod model;
mod sockets;
mod traces;

use std::str::FromStr;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "lists") {
        return lists::measure();
    }
    // cargo adds an argument of its own.
    if args.iter().any(|arg| arg == "sockets") {
        sockets::measure(&sockets::Plan {
            shape: value_of(&args, "--shape"),
            reads: value_of(&args, "--reads"),
            rate: value_of(&args, "--rate"),
            part: value_of(&args, "--part"),
            keep: value_of(&args, "--keep"),
        });
        return;
    }
    traces::compare_all(&traces::Plan {
        reads: value_of(&args, "--reads"),
        seed_first: value_of(&args, "--seeds"),
        only: value_of(&args, "--only"),
        slow_share: value_of(&args, "--slow-share"),
        svg: value_of(&args, "--svg"),
    });
}

fn value_of<T: FromStr>(args: &[String], name: &str) -> Option<T> {
    let text = args.get(args.iter().position(|arg| arg == name)? + 1)?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} does not take {text}")))
}
