//! Samples in, a Markdown table out.

use std::fmt::Write as _;

use crate::Plan;

/// Samples of one figure.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// The middle one; of an even number the lower of the two in the middle.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// The greatest sample alone.
    pub fn highest(&self) -> Samples {
        Samples(vec![self.max()])
    }

    fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// Ratios of the samples of the same rounds.
    pub fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    pub fn scaled(&self, factor: f64) -> Samples {
        self.0.iter().map(|sample| sample * factor).collect()
    }

    pub fn show(&self) -> String {
        match self.0.len() {
            0 => "–".to_owned(),
            1 => number(self.0[0]),
            _ => format!("{} ({}–{})", number(self.median()), number(self.min()), number(self.max())),
        }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Samples {
        Samples(samples.into_iter().collect())
    }
}

/// What the issue asks of a figure.
#[derive(Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Printed for comparison.
    None,
}

/// All rows so far.
pub struct Report {
    rows: Vec<String>,
    rounds: usize,
    small: bool,
}

impl Report {
    pub fn new(plan: &Plan) -> Report {
        Report { rows: Vec::new(), rounds: plan.rounds, small: plan.small }
    }

    /// One figure. `beside` says what else belongs to it.
    pub fn row(&mut self, name: &str, unit: &str, samples: &Samples, goal: Goal, beside: &str) {
        let (goal, verdict) = match goal {
            Goal::None => (String::new(), ""),
            Goal::AtLeast(goal) => (format!("≥ {}", number(goal)), verdict(samples.median() >= goal)),
            Goal::AtMost(goal) => (format!("≤ {}", number(goal)), verdict(samples.median() <= goal)),
        };
        let row = format!("| {name} | {} {unit} | {goal} | {verdict} | {beside} |", samples.show());
        eprintln!("{row}");
        self.rows.push(row);
    }

    /// A figure that could not be measured, and why.
    pub fn missing(&mut self, name: &str, why: &str) {
        let row = format!("| {name} | not measured | | | {why} |");
        eprintln!("{row}");
        self.rows.push(row);
    }

    pub fn print(&self) {
        let mut text = String::new();
        let size = if self.small { ", small sizes: these are not measurements" } else { "" };
        let _ = writeln!(text, "Median (lowest–highest) of {} rounds{size}.\n", self.rounds);
        let _ = writeln!(text, "| figure | measured | asked | verdict | beside it |\n|---|---|---|---|---|");
        for row in &self.rows {
            let _ = writeln!(text, "{row}");
        }
        print!("{text}");
    }
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "**missed**" }
}

/// Three or more significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The value below which this share of the samples lies. Sorts them.
pub fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let place = (samples.len() as f64 * share).ceil() as usize;
    samples.get(place.clamp(1, samples.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}
