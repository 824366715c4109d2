//! Packets as a TUN device with offloads hands them over: a header of 10 bytes (`struct virtio_net_hdr`, native order), then
//! an IP packet, which may be a bundle of many segments of TCP or UDP.

use std::ops::Range;

use crate::shape::Offered;

pub(crate) const VNET_HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP_L4: u8 = 5;
/// Beside the kind: the bundle has a congestion mark.
const GSO_ECN: u8 = 0x80;
const TCP_FIN_PUSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// A bundle that can be taken apart.
#[derive(Debug, Clone, Copy)]
struct Bundle {
    ip_header: usize,
    /// IP and transport header together.
    headers: usize,
    segment: usize,
    payload: usize,
    tcp: bool,
}

fn bundle(packet: &[u8]) -> Option<Bundle> {
    let kind = packet[1] & !GSO_ECN;
    let segment = usize::from(u16::from_ne_bytes([packet[4], packet[5]]));
    let ip = &packet[VNET_HEADER..];
    if segment == 0 || ip.first()? >> 4 != 4 {
        return None;
    }
    let ip_header = usize::from(ip[0] & 0xf) * 4;
    let transport = match kind {
        GSO_TCPV4 => usize::from(ip.get(ip_header + 12)? >> 4) * 4,
        GSO_UDP_L4 => 8,
        _ => return None,
    };
    let headers = ip_header + transport;
    let payload = ip.len().checked_sub(headers)?;
    Some(Bundle { ip_header, headers, segment, payload, tcp: kind == GSO_TCPV4 })
}

/// What the shaper has to know of a packet.
pub(crate) fn offered(packet: &[u8]) -> Offered {
    let bytes = (packet.len() - VNET_HEADER) as u64;
    match bundle(packet) {
        Some(Bundle { headers, segment, payload, .. }) if payload > segment => {
            let segments = payload.div_ceil(segment) as u32;
            let bytes = payload as u64 + u64::from(segments) * headers as u64;
            Offered { segments, segment_bytes: (headers + segment) as u32, bytes }
        }
        _ => Offered { segments: 1, segment_bytes: bytes as u32, bytes },
    }
}

/// Some of the segments of a bundle, as a bundle or packet of their own.
pub(crate) fn part(packet: &[u8], segments: &Range<u32>) -> Vec<u8> {
    let whole = offered(packet).segments;
    let Some(bundle) = bundle(packet).filter(|_| *segments != (0..whole)) else { return packet.to_vec() };
    let Bundle { ip_header, headers, segment, payload, tcp } = bundle;
    let start = segments.start as usize * segment;
    let end = (segments.end as usize * segment).min(payload);
    let head = VNET_HEADER + headers;
    let mut bytes = Vec::with_capacity(head + end - start);
    bytes.extend_from_slice(&packet[..head]);
    bytes.extend_from_slice(&packet[head + start..head + end]);
    if end - start <= segment {
        bytes[1] = GSO_NONE;
        bytes[4..6].fill(0);
    }
    let ip = &mut bytes[VNET_HEADER..];
    let length = (headers + end - start) as u16;
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    let number = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(segments.start as u16);
    ip[4..6].copy_from_slice(&number.to_be_bytes());
    ip[10..12].fill(0);
    let checksum = !folded(&ip[..ip_header], 0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let transport_length = length - ip_header as u16;
    if tcp {
        let number = &mut ip[ip_header + 4..ip_header + 8];
        let sequence = u32::from_be_bytes([number[0], number[1], number[2], number[3]]).wrapping_add(start as u32);
        number.copy_from_slice(&sequence.to_be_bytes());
        if segments.end < whole {
            ip[ip_header + 13] &= !TCP_FIN_PUSH;
        }
        if segments.start > 0 {
            ip[ip_header + 13] &= !TCP_CWR;
        }
    } else {
        ip[ip_header + 4..ip_header + 6].copy_from_slice(&transport_length.to_be_bytes());
    }
    if bytes[0] & NEEDS_CHECKSUM != 0 {
        // What stands in the checksum's place until a card would fill it in: the sum of the pseudo header.
        let ip = &mut bytes[VNET_HEADER..];
        let protocol = u32::from(ip[9]);
        let sum = folded(&ip[12..20], protocol + u32::from(transport_length));
        let place = ip_header + if tcp { 16 } else { 6 };
        ip[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

/// The sum of 16-bit words that checksums of the internet are made of (RFC 1071), not inverted.
fn folded(bytes: &[u8], start: u32) -> u16 {
    let mut sum = bytes.chunks(2).fold(start, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Flips a bit of a packet's content. Its checksum is still to be filled in, or is taken to be right: so nothing below the
/// programs notices.
pub(crate) fn damage(packet: &mut [u8], choice: u64) -> bool {
    let ip = &packet[VNET_HEADER..];
    if packet[0] & NEEDS_CHECKSUM == 0 || ip.first().is_none_or(|first| first >> 4 != 4) {
        return false;
    }
    let ip_header = usize::from(ip[0] & 0xf) * 4;
    let transport = match ip[9] {
        6 => ip.get(ip_header + 12).map_or(20, |offset| usize::from(offset >> 4) * 4),
        _ => 8,
    };
    let from = VNET_HEADER + ip_header + transport;
    if from >= packet.len() {
        return false;
    }
    let bits = (packet.len() - from) as u64 * 8;
    let bit = choice % bits;
    packet[from + (bit / 8) as usize] ^= 1 << (bit % 8);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_bundle(payload: usize, segment: u16) -> Vec<u8> {
        let mut packet = vec![0; VNET_HEADER + 40 + payload];
        packet[0] = NEEDS_CHECKSUM;
        packet[1] = GSO_TCPV4;
        packet[4..6].copy_from_slice(&segment.to_ne_bytes());
        let ip = &mut packet[VNET_HEADER..];
        ip[0] = 0x45;
        ip[4..6].copy_from_slice(&100u16.to_be_bytes());
        ip[9] = 6;
        ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        ip[24..28].copy_from_slice(&5_000u32.to_be_bytes());
        ip[32] = 0x50;
        ip[33] = 0x18;
        for (index, byte) in ip[40..].iter_mut().enumerate() {
            *byte = index as u8;
        }
        packet
    }

    #[test]
    fn a_part_of_a_bundle_is_what_its_segments_would_have_been() {
        let packet = tcp_bundle(3_500, 1_000);
        assert_eq!(offered(&packet), Offered { segments: 4, segment_bytes: 1_040, bytes: 3_660 });
        let part = part(&packet, &(1..3));
        assert_eq!(part.len(), VNET_HEADER + 40 + 2_000);
        assert_eq!(offered(&part).segments, 2);
        let ip = &part[VNET_HEADER..];
        assert_eq!(u16::from_be_bytes([ip[2], ip[3]]), 2_040);
        assert_eq!(u16::from_be_bytes([ip[4], ip[5]]), 101);
        assert_eq!(u32::from_be_bytes([ip[24], ip[25], ip[26], ip[27]]), 6_000);
        assert_eq!(ip[33], 0x10, "the push belongs to the last segment");
        assert_eq!(folded(&ip[..20], 0), 0xffff, "the header's checksum is right");
        assert_eq!(ip[40..], packet[VNET_HEADER + 40 + 1_000..VNET_HEADER + 40 + 3_000]);
    }

    #[test]
    fn the_last_segment_alone_is_no_bundle() {
        let packet = tcp_bundle(3_500, 1_000);
        let last = part(&packet, &(3..4));
        assert_eq!(last.len(), VNET_HEADER + 40 + 500);
        assert_eq!((last[1], last[4], last[5]), (GSO_NONE, 0, 0));
        assert_eq!(last[VNET_HEADER + 33], 0x18);
        assert_eq!(part(&packet, &(0..4)), packet);
    }

    #[test]
    fn damage_flips_one_bit_of_the_content() {
        let packet = tcp_bundle(3_500, 1_000);
        for choice in [0, 77, u64::MAX] {
            let mut damaged = packet.clone();
            assert!(damage(&mut damaged, choice));
            let flipped: u32 = packet.iter().zip(&damaged).map(|(before, after)| (before ^ after).count_ones()).sum();
            assert_eq!(flipped, 1);
            assert_eq!(packet[..VNET_HEADER + 40], damaged[..VNET_HEADER + 40]);
        }
    }
}
