// Package proxyproto speaks the PROXY protocol at both ends.
package proxyproto
