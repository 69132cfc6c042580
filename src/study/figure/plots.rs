//! Plots with axes and a legend: lines, points by class, bars, heat maps. Each function returns a PNG file's bytes.
//!
//! Plots are drawn at double size and halved, which smooths edges. The font is embedded in the program.

use std::ops::Range;
use std::sync::Once;

use anyhow::{Context, Result, ensure};
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::picture::{Colour, Picture};

/// The ten colours of matplotlib's tab10, for classes 0 to 9.
pub const TAB10: [RGBColor; 10] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
    RGBColor(23, 190, 207),
];

// Sizes in pixels of the drawing, before it is halved.
const TITLE: u32 = 52;
const TEXT: u32 = 40;
const MARGIN: u32 = 40;
const LEGEND_ROW: i32 = 56;
const FONT: &str = "sans-serif";

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, BitMapBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Title, axes and size of a plot. Empty texts are left out.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Title above the plot.
    pub title: String,
    /// Label of the horizontal axis.
    pub x_label: String,
    /// Label of the vertical axis.
    pub y_label: String,
    /// Range of the horizontal axis. `None`: the range of the data with a margin.
    pub x_range: Option<Range<f64>>,
    /// Range of the vertical axis. `None`: the range of the data with a margin.
    pub y_range: Option<Range<f64>>,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Default for Frame {
    fn default() -> Frame {
        let none = String::new;
        let (title, x_label, y_label) = (none(), none(), none());
        Frame { title, x_label, y_label, x_range: None, y_range: None, width: 1000, height: 640 }
    }
}

impl Frame {
    /// Returns a frame of the default size.
    pub fn new(title: &str, x_label: &str, y_label: &str) -> Frame {
        Frame { title: title.into(), x_label: x_label.into(), y_label: y_label.into(), ..Frame::default() }
    }

    /// Sets a size for which the plot itself is about square, for maps.
    pub fn square(self) -> Frame {
        Frame { width: 900, height: 800, ..self }
    }

    /// Sets the range of the vertical axis.
    pub fn with_y_range(self, low: f64, high: f64) -> Frame {
        Frame { y_range: Some(low..high), ..self }
    }
}

/// A line of a plot. A value that is not finite leaves a gap.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// The points (x, y) in the order in which the line joins them.
    pub points: Vec<(f64, f64)>,
    /// Lower and upper end of an interval around each point, drawn as a band. Empty for no band.
    pub band: Vec<(f64, f64)>,
}

/// A bar of a plot, with an error bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Name below the bar.
    pub name: String,
    /// Height of the bar.
    pub value: f64,
    /// Half the length of the error bar. `None` for no error bar.
    pub error: Option<f64>,
}

/// Draws lines with their bands.
///
/// # Errors
/// When there is no finite point, or a band has another length than its line.
pub fn lines(frame: &Frame, lines: &[Line]) -> Result<Vec<u8>> {
    for line in lines {
        ensure!(
            line.band.is_empty() || line.band.len() == line.points.len(),
            "line {}: {} points and a band of {}",
            line.name,
            line.points.len(),
            line.band.len()
        );
    }
    let xs = || lines.iter().flat_map(|l| l.points.iter().map(|p| p.0));
    let ys = || {
        let band = |l: &Line| l.band.iter().flat_map(|b| [b.0, b.1]).collect::<Vec<_>>();
        lines.iter().flat_map(move |l| l.points.iter().map(|p| p.1).chain(band(l)))
    };
    let ranges = (frame.x_range.clone().map_or_else(|| data_range(xs(), 0.0), Ok)?, y_range(frame, ys())?);
    let names: Vec<&str> = lines.iter().map(|l| l.name.as_str()).collect();
    render(frame, |canvas| {
        let canvas = split_off_legend(canvas, &names)?;
        let mut chart = axes(frame, &canvas, ranges, |_| ())?;
        for (i, line) in lines.iter().enumerate() {
            let colour = TAB10[i % 10];
            for run in finite_runs(line) {
                if !line.band.is_empty() {
                    let x = |i: usize| line.points[i].0;
                    let lower = run.clone().map(|i| (x(i), line.band[i].0));
                    let upper = run.clone().rev().map(|i| (x(i), line.band[i].1));
                    let outline: Vec<_> = lower.chain(upper).collect();
                    chart.draw_series([Polygon::new(outline, colour.mix(0.2))])?;
                }
                let points = run.map(|i| line.points[i]);
                chart.draw_series(LineSeries::new(points, colour.stroke_width(5)))?;
            }
        }
        Ok(())
    })
}

/// Returns the longest ranges of consecutive finite points.
fn finite_runs(line: &Line) -> Vec<Range<usize>> {
    let finite = |i: usize| {
        let band = line.band.get(i).is_none_or(|b| b.0.is_finite() && b.1.is_finite());
        band && line.points[i].0.is_finite() && line.points[i].1.is_finite()
    };
    let mut runs: Vec<Range<usize>> = Vec::new();
    for i in (0..line.points.len()).filter(|i| finite(*i)) {
        match runs.last_mut() {
            Some(run) if run.end == i => run.end += 1,
            _ => runs.push(i..i + 1),
        }
    }
    runs
}

/// Draws points in the colours of their classes, with a legend of the classes' names.
///
/// # Errors
/// When there is no point, the numbers of points and classes differ, or a class has no name.
pub fn scatter(frame: &Frame, points: &[(f64, f64)], classes: &[u8], names: &[&str]) -> Result<Vec<u8>> {
    ensure!(points.len() == classes.len(), "{} points with {} classes", points.len(), classes.len());
    let last = classes.iter().max().map_or(0, |c| usize::from(*c));
    ensure!(last < names.len(), "class {last} has no name: there are {} names", names.len());
    let x_range = frame.x_range.clone().map_or_else(|| data_range(points.iter().map(|p| p.0), 0.04), Ok)?;
    let ranges = (x_range, y_range(frame, points.iter().map(|p| p.1))?);
    // The more points, the smaller they are.
    let radius = (400.0 / (points.len() as f64).sqrt()).clamp(5.0, 14.0) as i32;
    render(frame, |canvas| {
        let canvas = split_off_legend(canvas, names)?;
        let mut chart = axes(frame, &canvas, ranges, |_| ())?;
        let dots = points.iter().zip(classes).filter(|(p, _)| p.0.is_finite() && p.1.is_finite());
        chart.draw_series(
            dots.map(|(p, c)| Circle::new(*p, radius, TAB10[usize::from(*c) % 10].mix(0.8).filled())),
        )?;
        Ok(())
    })
}

/// Draws bars from 0, each with its name below and its value above.
///
/// # Errors
/// When there are no bars, or a value is not finite.
pub fn bars(frame: &Frame, bars: &[Bar]) -> Result<Vec<u8>> {
    ensure!(!bars.is_empty(), "the plot has no bars");
    let end = |b: &Bar| [b.value - b.error.unwrap_or(0.0), b.value + b.error.unwrap_or(0.0)];
    let all: Vec<f64> = bars.iter().flat_map(end).chain([0.0]).collect();
    ensure!(all.iter().all(|v| v.is_finite()), "a bar's value is not finite");
    let ranges = (0.0..bars.len() as f64, y_range(frame, all.into_iter())?);
    let (low, high) = (ranges.1.start, ranges.1.end);
    render(frame, |canvas| {
        let mut chart = axes(frame, canvas, ranges, |mesh| {
            mesh.disable_x_mesh().x_labels(0);
        })?;
        chart.draw_series(bars.iter().enumerate().map(|(i, b)| {
            let (left, right) = (i as f64 + 0.15, i as f64 + 0.85);
            Rectangle::new([(left, 0.0), (right, b.value)], TAB10[i % 10].filled())
        }))?;
        for (i, bar) in bars.iter().enumerate() {
            let middle = i as f64 + 0.5;
            if let Some(error) = bar.error {
                let ends = [(middle, bar.value - error), (middle, bar.value + error)];
                chart.draw_series([PathElement::new(ends.to_vec(), BLACK.stroke_width(4))])?;
            }
            let name = chart.backend_coord(&(middle, low));
            label(canvas, &bar.name, (name.0, name.1 + 14), HPos::Center, VPos::Top)?;
            let top = chart.backend_coord(&(middle, end(bar)[1].max(0.0).min(high)));
            label(canvas, &format_number(bar.value), (top.0, top.1 - 8), HPos::Center, VPos::Bottom)?;
        }
        Ok(())
    })
}

/// Draws values as colours in rows from the top and columns, with a colour bar. Maps of few cells also show the values. A value
/// that is not finite is grey.
///
/// # Errors
/// When the values are not a whole number of rows, or none is finite.
pub fn heat_map(
    frame: &Frame,
    values: &[f64],
    columns: usize,
    range: Option<Range<f64>>,
    scale_label: &str,
) -> Result<Vec<u8>> {
    ensure!(
        columns > 0 && values.len().is_multiple_of(columns),
        "{} values are not whole rows of {columns}",
        values.len()
    );
    let rows = values.len() / columns;
    let scale = range.map_or_else(|| data_range(values.iter().copied(), 0.0), Ok)?;
    let colour = |value: f64| match value.is_finite() {
        true => ViridisRGB.get_color_normalized(value, scale.start, scale.end),
        false => RGBColor(160, 160, 160),
    };
    // The centres of cells are at integers. Rows count downwards.
    let ranges = (-0.5..columns as f64 - 0.5, rows as f64 - 0.5..-0.5);
    render(frame, |canvas| {
        let width = canvas.dim_in_pixel().0;
        let (left, right) = canvas.split_horizontally(width - 270);
        let mut chart = axes(frame, &left, ranges, |mesh| {
            mesh.disable_mesh().x_labels(columns.min(11)).y_labels(rows.min(11));
        })?;
        let centre = |i: usize| ((i % columns) as f64, (i / columns) as f64);
        chart.draw_series(values.iter().enumerate().map(|(i, v)| {
            let (x, y) = centre(i);
            Rectangle::new([(x - 0.5, y - 0.5), (x + 0.5, y + 0.5)], colour(*v).filled())
        }))?;
        if columns <= 12 && rows <= 12 {
            for (i, value) in values.iter().enumerate() {
                let bright = (value - scale.start) / (scale.end - scale.start) > 0.5;
                let style = text(TEXT - 8, HPos::Center, VPos::Center);
                let style = style.color(if bright { &BLACK } else { &WHITE });
                left.draw(&Text::new(format_number(*value), chart.backend_coord(&centre(i)), style))?;
            }
        }
        colour_bar(&right, &scale, scale_label, colour)
    })
}

fn colour_bar(
    canvas: &Canvas<'_>,
    scale: &Range<f64>,
    name: &str,
    colour: impl Fn(f64) -> RGBColor,
) -> Result<()> {
    const STEPS: i32 = 256;
    const TICKS: i32 = 5;
    let height = canvas.dim_in_pixel().1 as i32;
    let (top, bottom) = (TITLE as i32 * 2, height - 3 * TEXT as i32);
    let value = |part: f64| scale.start + part * (scale.end - scale.start);
    let y = |part: f64| bottom - (part * f64::from(bottom - top)) as i32;
    for i in 0..STEPS {
        let part = |i: i32| f64::from(i) / f64::from(STEPS);
        let ends = [(10, y(part(i + 1))), (60, y(part(i)))];
        canvas.draw(&Rectangle::new(ends, colour(value(part(i))).filled()))?;
    }
    for i in 0..=TICKS {
        let part = f64::from(i) / f64::from(TICKS);
        label(canvas, &format_number(value(part)), (74, y(part)), HPos::Left, VPos::Center)?;
    }
    label(canvas, name, (10, top - 20), HPos::Left, VPos::Bottom)
}

/// Draws at double the frame's size, halves the picture and encodes it as PNG.
fn render(frame: &Frame, draw: impl FnOnce(&Canvas<'_>) -> Result<()>) -> Result<Vec<u8>> {
    static FONTS: Once = Once::new();
    FONTS.call_once(|| {
        // Registration fails only for an invalid font file, and this one is valid.
        let _ = plotters::style::register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
    });
    ensure!(
        (100..=10_000).contains(&frame.width.min(frame.height)),
        "the smaller side of a plot must be from 100 to 10000 pixels"
    );
    let (width, height) = (2 * frame.width, 2 * frame.height);
    let mut pixels = vec![0; (width * height) as usize * 3];
    {
        let canvas = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        canvas.fill(&WHITE)?;
        draw(&canvas).context("drawing a plot")?;
        canvas.present()?;
    }
    let colour = Colour::Rgb;
    Picture { width: width as usize, height: height as usize, colour, pixels }.halved().png()
}

/// Draws title, axes and mesh. `configure` can change the mesh first.
fn axes<'a>(
    frame: &Frame,
    canvas: &Canvas<'a>,
    (x, y): (Range<f64>, Range<f64>),
    configure: impl FnOnce(
        &mut plotters::chart::MeshStyle<'_, '_, RangedCoordf64, RangedCoordf64, BitMapBackend<'a>>,
    ),
) -> Result<Chart<'a>> {
    let mut builder = ChartBuilder::on(canvas);
    builder.margin(MARGIN).x_label_area_size(110).y_label_area_size(170);
    if !frame.title.is_empty() {
        // Letters are about half as wide as high. A long title gets a smaller font.
        let fitting_size = 1.9 * f64::from(2 * frame.width) / frame.title.chars().count() as f64;
        builder.caption(&frame.title, (FONT, fitting_size.min(f64::from(TITLE))));
    }
    let mut chart = builder.build_cartesian_2d(x, y)?;
    let format = |v: &f64| format_number(*v);
    let mut mesh = chart.configure_mesh();
    mesh.x_label_formatter(&format)
        .y_label_formatter(&format)
        .x_labels(9)
        .y_labels(9)
        .label_style((FONT, TEXT))
        .axis_desc_style((FONT, TEXT))
        .axis_style(BLACK.stroke_width(3))
        .bold_line_style(BLACK.mix(0.15).stroke_width(2))
        .light_line_style(TRANSPARENT);
    if !frame.x_label.is_empty() {
        mesh.x_desc(&frame.x_label);
    }
    if !frame.y_label.is_empty() {
        mesh.y_desc(&frame.y_label);
    }
    configure(&mut mesh);
    mesh.draw()?;
    Ok(chart)
}

/// Draws a legend at the right and returns the rest of the canvas. Fewer than two names need no legend.
fn split_off_legend<'a>(canvas: &Canvas<'a>, names: &[&str]) -> Result<Canvas<'a>> {
    if names.len() < 2 {
        return Ok(canvas.clone());
    }
    let longest = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
    let (width, _) = canvas.dim_in_pixel();
    let legend = (90 + longest as u32 * (TEXT * 3 / 5)).min(width / 2);
    let (left, right) = canvas.split_horizontally(width - legend);
    for (i, name) in names.iter().enumerate() {
        let y = 2 * TITLE as i32 + LEGEND_ROW * i as i32;
        right.draw(&Rectangle::new([(0, y - 14), (28, y + 14)], TAB10[i % 10].filled()))?;
        label(&right, name, (44, y), HPos::Left, VPos::Center)?;
    }
    Ok(left)
}

fn text(size: u32, h: HPos, v: VPos) -> TextStyle<'static> {
    TextStyle::from((FONT, size)).pos(Pos::new(h, v))
}

fn label(canvas: &Canvas<'_>, words: &str, at: (i32, i32), h: HPos, v: VPos) -> Result<()> {
    Ok(canvas.draw(&Text::new(words.to_string(), at, text(TEXT, h, v)))?)
}

fn y_range(frame: &Frame, values: impl Iterator<Item = f64>) -> Result<Range<f64>> {
    frame.y_range.clone().map_or_else(|| data_range(values, 0.06), Ok)
}

/// Returns the range of the finite values, enlarged at both ends by `margin` times its length.
fn data_range(values: impl Iterator<Item = f64>, margin: f64) -> Result<Range<f64>> {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    ensure!(low <= high, "there are no finite values to plot");
    // Equal values need a range too.
    let length = if high > low { high - low } else { high.abs().max(1.0) };
    let margin = if high > low { margin * length } else { length / 2.0 };
    Ok(low - margin..high + margin)
}

/// Formats a number with four significant digits, without trailing zeros.
fn format_number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.abs().to_string();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..6).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.*}", (3 - magnitude).max(0) as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the pixels of a colour in a PNG.
    fn count(png: &[u8], colour: RGBColor) -> usize {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels.chunks_exact(3).filter(|p| **p == [colour.0, colour.1, colour.2]).count()
    }

    #[test]
    fn each_line_has_its_colour_and_its_gaps() {
        let points: Vec<_> = (0..50).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        let band = points.iter().map(|p| (p.1 - 1.0, p.1 + 1.0)).collect();
        let whole = Line { name: "a".into(), points: points.clone(), band };
        let mut broken = Line { name: "b".into(), points, band: vec![] };
        for point in &mut broken.points[10..40] {
            point.1 = f64::NAN;
        }
        assert_eq!(finite_runs(&broken), [0..10, 40..50]);
        let png = lines(&Frame::new("title", "x", "y"), &[whole.clone(), broken.clone()]).unwrap();
        let (first, second) = (count(&png, TAB10[0]), count(&png, TAB10[1]));
        assert!(first > 1000 && second > 300 && second < first, "{first} {second}");
        assert_eq!(count(&png, TAB10[2]), 0);
        broken.points = vec![(0.0, f64::NAN)];
        assert!(lines(&Frame::default(), &[broken]).is_err());
        assert!(lines(&Frame::default(), &[Line { band: vec![(0.0, 1.0)], ..whole }]).is_err());
    }

    #[test]
    fn every_class_needs_a_name() {
        let points = [(0.0, 1.0), (2.0, 3.0), (1.0, 1.5)];
        let frame = Frame::default().square();
        let png = scatter(&frame, &points, &[0, 1, 1], &["zero", "one"]).unwrap();
        assert!(count(&png, TAB10[0]) > 0 && count(&png, TAB10[1]) > 0);
        assert!(scatter(&frame, &points, &[0, 1, 2], &["zero", "one"]).is_err());
        assert!(scatter(&frame, &points, &[0, 1], &["zero", "one"]).is_err());
    }

    #[test]
    fn bars_and_maps_are_drawn() {
        let bar = |name: &str, value| Bar { name: name.into(), value, error: Some(0.5) };
        let png = bars(&Frame::default(), &[bar("up", 3.0), bar("down", -1.0)]).unwrap();
        assert!(count(&png, TAB10[0]) > 2 * count(&png, TAB10[1]));
        assert!(bars(&Frame::default(), &[bar("never", f64::NAN)]).is_err());
        let png = heat_map(&Frame::default(), &[0.0, 1.0, 0.5, f64::NAN], 2, None, "part").unwrap();
        assert!(count(&png, RGBColor(160, 160, 160)) > 10_000);
        assert!(heat_map(&Frame::default(), &[0.0; 3], 2, None, "").is_err());
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(0.0, "0"), (10.0, "10"), (-0.30, "-0.3"), (-84.64, "-84.64"), (100_000.0, "100000")]
        {
            assert_eq!(format_number(value), text);
        }
        assert_eq!((format_number(1.0 / 3.0), format_number(2.5e-7)), ("0.3333".into(), "2.50e-7".into()));
    }
}
