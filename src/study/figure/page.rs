//! A page of text, tables and pictures in one HTML file. The file embeds its pictures and loads nothing else.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; color: #1c1e21;
  background: #fff; max-width: 1040px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 1.9em; line-height: 1.2; margin: 0 0 .4em; }
h2 { margin: 2.4em 0 .4em; padding-top: .7em; border-top: 1px solid #d8dade; }
h3 { margin: 1.6em 0 .3em; }
nav a { margin-right: 1.1em; white-space: nowrap; }
a { color: #1f5fa8; text-decoration: none; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35em .8em; text-align: right; border-bottom: 1px solid #e3e5e8; }
th { border-bottom: 2px solid #9aa0a6; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1em 0 1.6em; }
img { max-width: 100%; height: auto; display: block; }
figcaption { margin-top: .4em; }
pre span { white-space: nowrap; }
pre { overflow-x: auto; background: #f3f4f6; border-radius: 4px; padding: .5em .8em; margin: .5em 0; font-size: .85em; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.left-out { color: #5f6368; font-style: italic; }
.scroll { overflow-x: auto; }
";

/// An HTML page, written from top to bottom.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    /// Anchor and title of each section.
    sections: Vec<(String, String)>,
    body: String,
}

/// Escapes text for HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            _ => out.push(c),
        }
    }
    out
}

impl Page {
    /// Returns an empty page.
    pub fn new(title: &str) -> Page {
        Page { title: title.into(), sections: Vec::new(), body: String::new() }
    }

    /// Begins a section. The list at the page's top links to its anchor.
    pub fn section(&mut self, anchor: &str, title: &str) {
        self.sections.push((anchor.into(), title.into()));
        self.put(&format!("<h2 id=\"{}\">{}</h2>", escape(anchor), escape(title)));
    }

    /// Adds a heading.
    pub fn heading(&mut self, text: &str) {
        self.put(&format!("<h3>{}</h3>", escape(text)));
    }

    /// Adds a paragraph of text.
    pub fn text(&mut self, text: &str) {
        self.put(&format!("<p>{}</p>", escape(text)));
    }

    /// Adds a note that something is missing, and why.
    pub fn missing(&mut self, text: &str) {
        self.put(&format!("<p class=\"left-out\">{}</p>", escape(text)));
    }

    /// Adds a command line.
    pub fn command(&mut self, command: &str) {
        // With a span for each word, lines do not break after the hyphens of a flag.
        let words: Vec<String> =
            command.split(' ').map(|word| format!("<span>{}</span>", escape(word))).collect();
        self.put(&format!("<pre><code>{}</code></pre>", words.join(" ")));
    }

    /// Adds a table of a header and rows. A cell may have several lines.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
            let cell = |c: &str| format!("<{tag}>{}</{tag}>", escape(c).replace('\n', "<br>"));
            format!("<tr>{}</tr>", cells.map(cell).collect::<String>())
        };
        let head = cells("th", &mut head.iter().copied());
        let rows: Vec<String> =
            rows.iter().map(|row| cells("td", &mut row.iter().map(String::as_str))).collect();
        let table = format!(
            "<div class=\"scroll\"><table><thead>{head}</thead>\n<tbody>{}</tbody></table></div>",
            rows.join("\n")
        );
        self.put(&table);
    }

    /// Adds a PNG or GIF picture with a caption.
    pub fn picture(&mut self, bytes: &[u8], caption: &str) {
        let kind = if bytes.starts_with(b"GIF") { "gif" } else { "png" };
        let (data, caption) = (STANDARD.encode(bytes), escape(caption));
        self.put(&format!(
            "<figure><img alt=\"{caption}\" src=\"data:image/{kind};base64,{data}\">\
                 <figcaption>{caption}</figcaption></figure>"
        ));
    }

    fn put(&mut self, html: &str) {
        self.body += html;
        self.body.push('\n');
    }

    /// Returns the whole file.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        let mut links = String::new();
        for (anchor, name) in &self.sections {
            let _ = writeln!(links, "<a href=\"#{}\">{}</a>", escape(anchor), escape(name));
        }
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<nav>\n{links}</nav>\n{}</body>\n</html>\n",
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_pictures_are_embedded() {
        let mut page = Page::new("a < b");
        page.section("one", "One & only");
        page.table(&["x", "y"], &[vec!["1".into(), "<script>\n2".into()]]);
        page.picture(b"GIF89a", "a \"moving\" picture");
        let html = page.html();
        assert!(html.contains("<h1>a &lt; b</h1>") && html.contains("<a href=\"#one\">One &amp; only</a>"));
        assert!(html.contains("<td>&lt;script&gt;<br>2</td>") && !html.contains("<script"));
        assert!(html.contains("data:image/gif;base64,R0lGODlh\""));
        assert!(html.contains("alt=\"a &quot;moving&quot; picture\""));
    }
}
