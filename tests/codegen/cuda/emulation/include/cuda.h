// Generated source includes this; what it needs of it is in emulated_device.h.
#pragma once
