//! Whether a refused batch holds a bad record, or the database is in trouble.
//!
//! By SQLSTATE, PostgreSQL's Appendix A (<https://www.postgresql.org/docs/current/errcodes-appendix.html>). What is
//! not known to be the data's own fault is the database's: waiting loses nothing, setting a good event aside would.

use tokio_postgres::error::SqlState;

use crate::record::SinkError;
use crate::store::pool::describe;

pub(super) fn verdict(error: &tokio_postgres::Error) -> SinkError {
    let text = describe(error);
    let poison = match error.as_db_error() {
        Some(db) => is_poison(db.code(), db.constraint()),
        // No answer of the server's: the connection broke, or the driver could not encode a value.
        None => error.to_string().starts_with("error serializing parameter"),
    };
    if poison { SinkError::Poison(text) } else { SinkError::Transient(text) }
}

fn is_poison(code: &SqlState, constraint: Option<&str>) -> bool {
    // A row for which there is no partition, or whose partition was attached this moment, names no constraint. The
    // next attempt finds it.
    if *code == SqlState::CHECK_VIOLATION && constraint.is_none() {
        return false;
    }
    match code.code().get(..2) {
        // 22 data exception, 23 integrity constraint violation: this row, always.
        Some("22" | "23") => true,
        // 44 WITH CHECK OPTION, 54 program limit exceeded (a value too long for an index, JSON too deep), P0 an
        // operator's own trigger that raises.
        Some("44" | "54" | "P0") => true,
        // 08 connection, 25 read-only or aborted transaction, 28 password, 3D and 3F and 42 database, schema, table
        // or right missing, 40 deadlock or serialization, 53 resources (disk, memory, connections), 55 lock not
        // available, 57 cancelled, shut down or starting, 58 system, XX internal; and all that is new.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_73_bad_rows_are_told_from_a_database_in_trouble() {
        let poison =
            ["22003", "22021", "22P02", "22P05", "23502", "23514", "44000", "54000", "54001", "P0001"];
        for code in poison {
            assert!(is_poison(&SqlState::from_code(code), Some("some_check")), "{code}");
        }
        let transient = [
            "08006", "08P01", "25006", "25P02", "28P01", "3D000", "3F000", "40001", "40P01", "42501",
            "42703", "42P01", "53100", "53200", "53300", "55P03", "57014", "57P01", "57P02", "57P03",
            "58030", "XX000", "0A000", "26000",
        ];
        for code in transient {
            assert!(!is_poison(&SqlState::from_code(code), None), "{code}");
        }
    }

    #[test]
    fn a_row_between_two_partitions_is_not_poison() {
        assert!(!is_poison(&SqlState::CHECK_VIOLATION, None));
    }
}
