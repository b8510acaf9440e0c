//! Prices as decimals: digits and a point, without the noise of binary fractions.

use serde_json::Value;

/// Decimals of a price in dollars per million tokens: what [`crate::model::price::PicoUsdPerToken`] holds.
const PER_MILLION: i32 = 6;

/// Decimals of a fee in dollars: nano-dollars.
const FEE: i32 = 9;

/// Dollars per token as dollars per million, such as `0.15` for 0.00000015.
pub(super) fn per_million(value: &Value) -> Result<String, String> {
    rounded(value, PER_MILLION, PER_MILLION)
}

/// Dollars as dollars.
pub(super) fn dollars(value: &Value) -> Result<String, String> {
    rounded(value, 0, FEE)
}

/// `value` × 10^`shift`, rounded half up to `decimals`. A price that is not nothing must not become nothing.
fn rounded(value: &Value, shift: i32, decimals: i32) -> Result<String, String> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let number = number.filter(|number| number.is_finite() && (0.0..=1000.0).contains(number));
    let number = number.ok_or("is not a price: a number of US dollars, 0 to 1000 for one thing")?;
    // The shortest decimal that is this number, which is the one that was written: `1.5e-7`.
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let fraction = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let digits: u128 = digits.replace('.', "").parse().unwrap_or(0);
    let places = exponent - i32::try_from(fraction).unwrap_or(0) + shift + decimals;
    let units = match u32::try_from(places) {
        Ok(up) => digits.saturating_mul(10u128.saturating_pow(up)),
        Err(_) => half_up(digits, places.unsigned_abs()),
    };
    if units == 0 && digits > 0 {
        return Err("is less than we can hold".to_owned());
    }
    Ok(point(units, decimals.unsigned_abs()))
}

fn half_up(digits: u128, down: u32) -> u128 {
    10u128.checked_pow(down).map_or(0, |power| (digits + power / 2) / power)
}

/// `units` of 10^-`decimals`, with as many decimals as it needs and one at least: what TOML takes for a number with a
/// fraction.
fn point(units: u128, decimals: u32) -> String {
    let power = 10u128.pow(decimals);
    let fraction = format!("{:0width$}", units % power, width = decimals as usize);
    let fraction = fraction.trim_end_matches('0');
    format!("{}.{}", units / power, if fraction.is_empty() { "0" } else { fraction })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn dollars_per_token_become_dollars_per_million_without_noise() {
        let cases = [
            (json!(0.00000015), "0.15"),
            (json!(1.5e-7), "0.15"),
            (json!(0.000003), "3.0"),
            (json!(2.4999999999999998e-06), "2.5"),
            (json!(3.75e-8), "0.0375"),
            (json!(0), "0.0"),
            (json!("1e-6"), "1.0"),
            (json!(0.00015), "150.0"),
            (json!(1.25e-9), "0.00125"),
        ];
        for (value, expected) in cases {
            assert_eq!(per_million(&value).as_deref(), Ok(expected), "{value}");
        }
        assert_eq!(dollars(&json!(0.035)).as_deref(), Ok("0.035"));
        assert!(per_million(&json!(1e-14)).unwrap_err().contains("less than we can hold"));
        for bad in [json!(-1.0), json!(null), json!({}), json!("free"), json!(1e9)] {
            assert!(per_million(&bad).unwrap_err().contains("is not a price"), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Any price of up to six decimals a million comes out as it was published, digit by digit.
        #[test]
        fn a_price_comes_out_as_it_was_published(pico in 0u64..1_000_000_000_000) {
            let per_token: f64 = format!("{pico}e-12").parse().unwrap();
            let text = per_million(&json!(per_token)).unwrap();
            prop_assert_eq!((text.parse::<f64>().unwrap() * 1e6).round() as u64, pico);
        }
    }
}
