//! TUN devices with offloads.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;
use rustix::ioctl;

/// `TUNSETIFF` and `TUNSETOFFLOAD` of `linux/if_tun.h`.
const TUN_SET_INTERFACE: ioctl::Opcode = 0x4004_54ca;
const TUN_SET_OFFLOAD: ioctl::Opcode = 0x4004_54d0;
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Checksums are filled in by the card, TCP (IPv4) and UDP (both, or neither) are cut into segments by it.
const OFFLOADS: usize = 0x01 | 0x02 | 0x20 | 0x40;
const NAME_BYTES: usize = 16;

/// `struct ifreq` as far as it is used here.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a device of this name in the network namespace of the calling thread. It vanishes with the file.
///
/// # Errors
/// Without the right to, or when there is one of this name.
pub(crate) fn tun(name: &str) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun")?;
    let mut request =
        InterfaceRequest { name: [0; NAME_BYTES], flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    if name.len() >= NAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of an interface has at most 15 bytes"));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    set(&file, request)?;
    Ok(file)
}

#[expect(unsafe_code, reason = "no safe interface offers these two calls; both only read what they are given")]
fn set(file: &File, request: InterfaceRequest) -> io::Result<()> {
    // SAFETY: the kernel reads a `struct ifreq` of 40 bytes, which is what it is given, and keeps no pointer to it.
    unsafe { ioctl::ioctl(file, ioctl::Setter::<TUN_SET_INTERFACE, InterfaceRequest>::new(request)) }?;
    // SAFETY: the argument is a number.
    unsafe { ioctl::ioctl(file, ioctl::IntegerSetter::<TUN_SET_OFFLOAD>::new_usize(OFFLOADS)) }?;
    Ok(())
}
