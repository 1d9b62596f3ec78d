//! A page that stands alone: headings, tables and figures in one file, light or dark as the reader's system is.
//!
//! Nothing is loaded from anywhere and nothing runs, so a page can be mailed, kept beside the trace and opened in ten
//! years. Text is escaped here; figures come escaped.

use mainstay_console::PALETTE;

use crate::plot::{Plot, escaped};

const STYLE: &str = r#"
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:1320px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:34px 0 10px}
p{margin:4px 0 10px;max-width:80ch}.lead,.none,figcaption span,.note{color:var(--dim)}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px}
figure,.table{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px}
.table{overflow-x:auto}.narrow{max-width:650px}figcaption b,figcaption span{display:block}figcaption span{font-size:13px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}th{color:var(--dim);font-weight:600;font-size:13px}
th:first-child,td:first-child{text-align:left;padding-left:0}
svg{width:100%;height:auto;display:block;margin-top:6px}
.grid{stroke:var(--line);fill:none}.axis{stroke:var(--dim);fill:none}
text{fill:var(--dim);font:12px system-ui,sans-serif}.yt{text-anchor:end}.xt{text-anchor:middle}.name{font-size:13px}
polyline{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}circle{fill:currentColor}
.dashed polyline{stroke-dasharray:5 4}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}
.legend{list-style:none;margin:8px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px}
.legend li::before{content:"";display:inline-block;width:14px;height:3px;margin-right:6px;vertical-align:middle;background:currentColor}
"#;

/// A page that is being written.
pub(crate) struct Page {
    text: String,
}

impl Page {
    pub(crate) fn new(title: &str, lead: &str) -> Self {
        let (title, lead) = (escaped(title), escaped(lead));
        let text = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title}</title><style>{PALETTE}{STYLE}</style></head><body><main><h1>{title}</h1><p class=\"lead\">{lead}</p>\n"
        );
        Self { text }
    }

    pub(crate) fn section(&mut self, title: &str, note: &str) {
        self.text.push_str(&format!("<h2>{}</h2>", escaped(title)));
        if !note.is_empty() {
            self.text.push_str(&format!("<p class=\"note\">{}</p>", escaped(note)));
        }
    }

    pub(crate) fn table(&mut self, headers: &[&str], rows: &[Vec<String>]) {
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
            cells.map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect()
        };
        let head = cells("th", &mut headers.iter().copied());
        // Two columns far apart are hard to read as one line.
        let narrow = if headers.len() == 2 { " narrow" } else { "" };
        self.text.push_str(&format!("<div class=\"table{narrow}\"><table><tr>{head}</tr>"));
        for row in rows {
            let row = cells("td", &mut row.iter().map(String::as_str));
            self.text.push_str(&format!("<tr>{row}</tr>"));
        }
        self.text.push_str("</table></div>\n");
    }

    pub(crate) fn list(&mut self, items: &[&str]) {
        let items: String = items.iter().map(|i| format!("<li>{}</li>", escaped(i))).collect();
        self.text.push_str(&format!("<ul>{items}</ul>\n"));
    }

    pub(crate) fn plots(&mut self, plots: &[Plot]) {
        let shown = plots.iter().filter(|plot| plot.has_points());
        let figures: String = shown.map(Plot::figure).collect();
        self.text.push_str(&format!("<div class=\"grid2\">{figures}</div>\n"));
    }

    pub(crate) fn end(mut self) -> String {
        self.text.push_str("</main></body></html>\n");
        self.text
    }
}
