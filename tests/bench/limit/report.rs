//! What was measured, as a table, as JSON, and as a picture.
//!
//! `main` puts one value in for each row, server and round. Numbers of one machine say nothing about another, so what
//! comes out are ratios within one round: their median, and the lowest and highest.

use std::io;
use std::path::Path;

use plotters::prelude::*;
use serde_json::{Map, Value, json};

use crate::process::Kind;

/// One line of the table.
pub struct Row {
    pub part: &'static str,
    pub name: String,
    pub unit: &'static str,
    /// What the others are measured by; without one the values themselves are shown.
    pub base: Option<Kind>,
    /// One value a round, of each server.
    pub values: Vec<(Kind, Vec<f64>)>,
}

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

/// Lowest, median, highest.
struct Spread(f64, f64, f64);

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Spread(at(0), at(values.len() / 2), at(values.len().saturating_sub(1)))
    }

    fn text(&self) -> String {
        let Spread(low, median, high) = self;
        let digits = if *median >= 100.0 { 0 } else { 2 };
        format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
    }
}

impl Report {
    /// Notes a value of the round that is under way.
    pub fn note(
        &mut self,
        part: &'static str,
        name: &str,
        unit: &'static str,
        base: Option<Kind>,
        kind: Kind,
        value: f64,
    ) {
        let index = self.rows.iter().position(|row| row.part == part && row.name == name);
        let index = index.unwrap_or_else(|| {
            self.rows.push(Row { part, name: name.to_owned(), unit, base, values: Vec::new() });
            self.rows.len() - 1
        });
        let values = &mut self.rows[index].values;
        match values.iter_mut().find(|(of, _)| *of == kind) {
            Some((_, values)) => values.push(value),
            None => values.push((kind, vec![value])),
        }
    }

    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let mut text =
            String::from("| part | what | server | median (lowest to highest) |\n|---|---|---|---|\n");
        for row in &self.rows {
            for (kind, spread) in row.spreads() {
                let what = if row.base.is_some() { "x" } else { row.unit };
                let line =
                    format!("| {} | {} | {} | {} {what} |\n", row.part, row.name, kind.name(), spread.text());
                text.push_str(&line);
            }
        }
        text
    }

    /// Writes the rows, in place of those of the same part that the file has already.
    pub fn write_json(&self, path: &Path) -> io::Result<()> {
        let mut parts: Map<String, Value> = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(error),
        };
        for row in &self.rows {
            parts.insert(row.part.to_owned(), json!({}));
        }
        for row in &self.rows {
            let servers: Map<String, Value> = row
                .spreads()
                .map(|(kind, Spread(low, median, high))| {
                    (
                        kind.name().to_owned(),
                        json!({"median": rounded(median), "lowest": rounded(low), "highest": rounded(high)}),
                    )
                })
                .collect();
            let unit = match row.base {
                Some(base) => format!("times \"{}\" in the same round", base.name()),
                None => row.unit.to_owned(),
            };
            parts[row.part][&row.name] = json!({"unit": unit, "servers": servers});
        }
        std::fs::write(path, format!("{:#}\n", Value::Object(parts)))
    }
}

/// To three digits: more would be noise.
fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

impl Row {
    fn spreads(&self) -> impl Iterator<Item = (Kind, Spread)> {
        let base = self.base.and_then(|base| self.values.iter().find(|(kind, _)| *kind == base));
        self.values.iter().map(move |(kind, values)| {
            let in_round = |(round, value): (usize, &f64)| value / base.map_or(1.0, |(_, base)| base[round]);
            (*kind, Spread::of(values.iter().enumerate().map(in_round)))
        })
    }
}

/// Draws what the JSON file says of deliveries flat out and of their cost.
pub fn draw(json: &Path, picture: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let parts: Value = serde_json::from_slice(&std::fs::read(json)?)?;
    let area = SVGBackend::new(picture, (860, 300)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(430);
    let median = |row: &str, kind: Kind| parts["fan-out"][row]["servers"][kind.name()]["median"].as_f64();
    let panels = [
        (left, "Deliveries a second, flat out (more is better)", "flat out, 1 publisher"),
        (right, "Processor time a delivery, 20 events/s (less is better)", "CPU per delivery"),
    ];
    for (area, title, row) in panels {
        let kinds = [Kind::PerEvent, Kind::Nchan, Kind::Statecast, Kind::AllPending];
        let bars: Vec<(Kind, f64)> =
            kinds.into_iter().filter_map(|kind| Some((kind, median(row, kind)?))).collect();
        let most = bars.iter().fold(0.0, |most: f64, (_, value)| most.max(*value));
        let font = ("sans-serif", 14);
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .caption(title, ("sans-serif", 15))
            .build_cartesian_2d(0.0..most * 1.2, 0.0..bars.len() as f64)?;
        for (index, (kind, value)) in bars.iter().enumerate() {
            let top = (bars.len() - index) as f64;
            let color =
                if *kind == Kind::Statecast { RGBColor(28, 110, 164) } else { RGBColor(170, 180, 190) };
            chart.draw_series([Rectangle::new([(0.0, top - 0.9), (*value, top - 0.45)], color.filled())])?;
            chart.draw_series([Text::new(kind.name(), (0.0, top - 0.12), font)])?;
            chart.draw_series([Text::new(
                format!("{value:.1}x"),
                (*value + most * 0.02, top - 0.60),
                font,
            )])?;
        }
    }
    area.present()?;
    Ok(())
}
