//! Answers: tables as JSON without rounding a number, or as CSV that no spreadsheet takes for a program.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::value::RawValue;

use super::problem::Problem;
use crate::store::report::{Kind, Table};

/// A JSON answer.
pub(super) fn json(body: &impl Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_vec(body).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        Problem::Internal
    })?;
    Ok(plain(StatusCode::OK, "application/json", body))
}

/// An answer of any type.
pub(super) fn plain(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A CSV answer (RFC 4180), as a download. A next page's cursor goes into `x-next-cursor`.
pub(super) fn csv(table: &Table, file: &'static str, next: Option<&str>) -> Result<Response, Problem> {
    let body = write_csv(table).map_err(|error| {
        tracing::error!(%error, "an answer could not be written as CSV");
        Problem::Internal
    })?;
    let mut response = plain(StatusCode::OK, "text/csv; charset=utf-8; header=present", body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static(file));
    if let Some(next) = next.and_then(|next| HeaderValue::from_str(next).ok()) {
        headers.insert("x-next-cursor", next);
    }
    Ok(response)
}

fn write_csv(table: &Table) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(table.columns.iter().map(|column| column.name))?;
    for row in &table.rows {
        let cells =
            table.columns.iter().zip(row).map(|(column, cell)| cell_text(column.kind, cell.as_deref()));
        writer.write_record(cells.map(|cell| cell.into_owned().into_bytes()))?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

/// A text that a spreadsheet would run as a formula gets an apostrophe before it (OWASP, "CSV Injection").
/// Numbers come from numeric columns and stay as they are: a negative one is no formula.
fn cell_text(kind: Kind, cell: Option<&str>) -> Cow<'_, str> {
    let cell = cell.unwrap_or_default();
    if kind == Kind::Text && cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        Cow::Owned(format!("'{cell}"))
    } else {
        Cow::Borrowed(cell)
    }
}

/// Whether the caller asks for CSV: `text/csv` is named, and preferred to JSON where both are (RFC 9110, 12.5.1).
pub(super) fn wants_csv(headers: &HeaderMap) -> bool {
    let ranges: Vec<(&str, f32)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(media_range)
        .collect();
    let quality =
        |kind: &str| ranges.iter().find(|(k, _)| k.eq_ignore_ascii_case(kind)).map_or(0.0, |(_, q)| *q);
    let csv = quality("text/csv");
    csv > 0.0 && csv >= quality("application/json")
}

fn media_range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let weight = parts.find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")));
    (kind, weight.map_or(1.0, |q| q.parse().unwrap_or(0.0)))
}

/// A table as an array of objects.
pub(super) struct Rows<'a>(pub(super) &'a Table);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.rows.len()))?;
        for row in &self.0.rows {
            list.serialize_element(&Object(self.0, row))?;
        }
        list.end()
    }
}

/// A table's first row as an object; `null` when it has none.
pub(super) struct FirstRow<'a>(pub(super) &'a Table);

impl Serialize for FirstRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.rows.first().map(|row| Object(self.0, row)).serialize(serializer)
    }
}

struct Object<'a>(&'a Table, &'a [Option<String>]);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.1.len()))?;
        for (column, cell) in self.0.columns.iter().zip(self.1) {
            map.serialize_entry(column.name, &Cell(column.kind, cell.as_deref()))?;
        }
        map.end()
    }
}

struct Cell<'a>(Kind, Option<&'a str>);

impl Serialize for Cell<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Cell(kind, cell) = self;
        match (kind, cell) {
            (_, None) => serializer.serialize_none(),
            (Kind::Text | Kind::Time, Some(text)) => serializer.serialize_str(text),
            // As printed, digit by digit. What JSON has no word for (NaN) is null.
            (Kind::Number | Kind::Bool | Kind::Json, Some(text)) => {
                serde_json::from_str::<&RawValue>(text).ok().serialize(serializer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::report::Column;

    fn table(columns: &[(&'static str, Kind)], rows: &[&[Option<&str>]]) -> Table {
        let owned = |row: &&[Option<&str>]| row.iter().map(|cell| cell.map(str::to_owned)).collect();
        Table {
            columns: columns.iter().map(|(name, kind)| Column { name, kind: *kind }).collect(),
            rows: rows.iter().map(owned).collect(),
        }
    }

    fn accept(value: &'static str) -> bool {
        wants_csv(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))]))
    }

    #[test]
    fn numbers_keep_every_digit() {
        let columns =
            [("cost", Kind::Number), ("tokens", Kind::Number), ("nan", Kind::Number), ("none", Kind::Number)];
        let row = [Some("12345678901234567890.12345678"), Some("9223372036854775807"), Some("NaN"), None];
        let json = serde_json::to_string(&Rows(&table(&columns, &[&row]))).unwrap();
        assert_eq!(
            json,
            r#"[{"cost":12345678901234567890.12345678,"tokens":9223372036854775807,"nan":null,"none":null}]"#
        );
    }

    #[test]
    fn fault_103_a_formula_in_a_text_is_no_formula_in_a_cell() {
        let columns = [("name", Kind::Text), ("number", Kind::Number)];
        let texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "plain", "a\r\nb", "say \"hi\", all"];
        let rows: Vec<[Option<&str>; 2]> = texts.iter().map(|text| [Some(*text), Some("-5")]).collect();
        let rows: Vec<&[Option<&str>]> = rows.iter().map(|row| row.as_slice()).collect();
        let csv = write_csv(&table(&columns, &rows)).unwrap();
        let mut reader = csv::Reader::from_reader(csv.as_slice());
        let seen: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        let cells: Vec<&str> = seen.iter().map(|record| &record[0]).collect();
        let expected =
            ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\r=1", "plain", "a\r\nb", "say \"hi\", all"];
        assert_eq!(cells, expected);
        assert!(seen.iter().all(|record| &record[1] == "-5"));
    }

    #[test]
    fn csv_is_for_those_who_ask_for_it() {
        assert!(
            accept("text/csv")
                && accept("Text/CSV;q=0.9, */*;q=0.1")
                && accept("application/json;q=0.5, text/csv")
        );
        assert!(!accept("*/*") && !accept("text/html") && !accept("text/csv;q=0") && !accept("text/csv;q=x"));
        assert!(!accept("application/json, text/csv;q=0.5") && !wants_csv(&HeaderMap::new()));
    }
}
