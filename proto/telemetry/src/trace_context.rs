//! W3C trace context (`traceparent`, level 1): read from whoever submits a run, or made.

use std::fmt;
use std::str::FromStr;

use opentelemetry::trace::{SpanId, TraceFlags, TraceId};

/// Which span something belongs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace: TraceId,
    pub span: SpanId,
    pub flags: TraceFlags,
}

/// A text that is no trace context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no traceparent: write 00-<32 hexadecimal digits>-<16>-<2>, not all zero")]
pub struct InvalidTraceparent(String);

impl TraceContext {
    /// A new trace, or a new span in the one given; `random` is as many random bits.
    pub fn begin(parent: Option<Self>, random: [u8; 24]) -> Self {
        let [trace @ .., s0, s1, s2, s3, s4, s5, s6, s7] = random;
        let span = SpanId::from_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        match parent {
            Some(parent) => Self { span, ..parent },
            None => Self { trace: TraceId::from_bytes(trace), span, flags: TraceFlags::SAMPLED },
        }
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceparent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceparent> {
        let parse = || {
            let mut parts = text.split('-');
            let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            let lower = |part: &str, length: usize| {
                part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            };
            // Later versions may add parts; version ff is forbidden.
            let known = lower(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
            if !known || !lower(trace, 32) || !lower(span, 16) || !lower(flags, 2) {
                return None;
            }
            let trace = TraceId::from_hex(trace).ok()?;
            let span = SpanId::from_hex(span).ok()?;
            let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
            let valid = trace != TraceId::INVALID && span != SpanId::INVALID;
            valid.then_some(Self { trace, span, flags: TraceFlags::new(sampled) })
        };
        parse().ok_or_else(|| InvalidTraceparent(text.chars().take(80).collect()))
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "00-{}-{}-{:02x}", self.trace, self.span, self.flags.to_u8())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_context_is_written_as_it_was_read() {
        let context: TraceContext = EXAMPLE.parse().expect("it is valid");
        assert_eq!(context.to_string(), EXAMPLE);
        let child = TraceContext::begin(Some(context), [7; 24]);
        assert_eq!(child.trace, context.trace);
        assert_ne!(child.span, context.span);
        let made = TraceContext::begin(None, [7; 24]);
        assert_eq!(made.to_string().parse(), Ok(made));
    }

    #[test]
    fn what_is_no_trace_context_is_refused() {
        let wrong = [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ];
        for text in wrong {
            assert!(text.parse::<TraceContext>().is_err(), "{text}");
        }
    }
}
